"""Several calls measured in turns, so that what else a machine does falls on all of them."""
import statistics, time
from collections.abc import Callable


def alternate(calls:dict[str, Callable], # what is measured, by name
              rounds:int, # times that all are measured, one after the other
              repeats:int=1, # calls in a turn
             ) -> list[dict[str, float]]: # CPU seconds a call of each, one entry a round
    "Every call once to warm up, then rounds in which all take turns."
    def clock(call):
        start = time.process_time()
        for _ in range(repeats):
            call()
        return (time.process_time() - start) / repeats
    for call in calls.values():
        clock(call)
    return [{name: clock(call) for name, call in calls.items()} for _ in range(rounds)]


def ratio(found:list[dict[str, float]], # of `alternate`
          above:str, # a name
          below:str, # another one
         ) -> list[float]: # lower quartile, median, upper quartile over rounds
    "One call's time over another's, within each round."
    return [round(x, 3) for x in statistics.quantiles([row[above] / row[below] for row in found], n=4)]


def median(found:list[dict[str, float]], name:str) -> float: # CPU seconds
    "A call's time, median over rounds."
    return statistics.median(row[name] for row in found)
