"""`llrflow sweep` with trials that compute nothing: they leave the records of a real trial as their own.

    python idle_trials.py FIGURES REAL_RUN sweep SPEC --out OUT ...

REAL_RUN is the run folder of one trial of the same spec. The driver does all that it does in a real sweep, and reads
as much. FIGURES gets a JSON object: seconds of wall time, and of the driver's CPU time, since this process began to

- imports: all is imported
- trials: the specs of all trials are loaded
- ready: they are checked, the folder is made, and Ray is about to start
- ray: Ray has started
- started: Tune has a worker process for the first trial
- first_step: that process begins with it (wall time alone)
- end: all is written

and driver_peak_mib, the most memory that was resident in the driver; evaluations_read, how many records of looks and
evaluations the driver has read.
"""

import json
import resource
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

FIGURES, REAL = Path(sys.argv[1]), Path(sys.argv[2])
FIRST = FIGURES.with_suffix(".first")
BEGAN = psutil.Process().create_time()
figures = {}


def note(name):
    figures.setdefault(name, round(time.time() - BEGAN, 2))
    figures.setdefault(f"{name}_cpu", round(time.process_time(), 2))


def counting(function, name):
    def call(*arguments, **options):
        figures[name] = figures.get(name, 0) + 1
        return function(*arguments, **options)

    return call


def noting(function, name):
    def call(*arguments, **options):
        result = function(*arguments, **options)
        note(name)
        return result

    return call


def idle(base):
    """A TrialRunner that takes the records of REAL_RUN for its own."""
    from llrflow.runs.folder import RunFolder
    from llrflow.sweep.space.trials import look_label, sweep_of
    from llrflow.sweep.tracking.looks import look_at, record_of

    first, real = FIRST, REAL  # Ray sends the class to its workers, with what it refers to

    class Idle(base):
        def _advance(self, storage, spec):
            with suppress(FileExistsError), first.open("x") as file:
                file.write(str(time.time()))
            folder, source, rungs = storage.run(self._config["name"]), RunFolder(real), self._config["rungs"]
            if self._reported == 0:
                self.label = look_label(self._trial(spec), sweep_of(spec))
                folder.evaluation.mkdir(parents=True)
                for name in ("metrics.jsonl", "spec.yaml"):
                    shutil.copyfile(source.path / name, folder.path / name)
            rung, last = rungs[self._reported], self._reported + 1 == len(rungs)
            self._reported += 1
            (look,) = source.evaluation.glob(f"{rung}-*.json")
            shutil.copyfile(look, folder.evaluation / f"{rung}{self.label}.json")
            if last:
                shutil.copyfile(source.evaluation / f"{rung}.json", folder.evaluation / f"{rung}.json")
            state = "finished" if last else "training"
            record_of(source).model_copy(update={"step": rung, "state": state}).write(folder.run)
            measured = look_at(folder, rung, self.label, "test")
            return {**measured, "done": last, "state": "finished" if last else "running"}

    return Idle


def main():
    from llrflow.cli import main
    from llrflow.commands.environment import ray_environment

    ray_environment()
    import ray

    from llrflow.sweep.running import agenda, driver, tune
    from llrflow.sweep.tracking import looks, outcome

    note("imports")
    FIRST.unlink(missing_ok=True)
    tune.TrialRunner = idle(tune.TrialRunner)
    driver.trials_of = noting(driver.trials_of, "trials")
    agenda.Agenda.todo = noting(agenda.Agenda.todo, "ready")
    ray.init = noting(ray.init, "ray")
    for module in (looks, outcome):
        module.evaluation_of = counting(module.evaluation_of, "evaluations_read")
    tune.TrialCallback.on_trial_start = lambda *arguments, **options: note("started")
    try:
        main(sys.argv[3:])
    finally:
        note("end")
        figures["first_step"] = round(float(FIRST.read_text()) - BEGAN, 2)
        figures["driver_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        FIGURES.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
