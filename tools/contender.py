"""One contender, in a process of its own: it builds a model, then does the task that each line on its input names.

Its only argument is the JSON of ``Contender``'s; each line out is a task's result, as JSON. ``bench.py`` is at the
other end and takes turns between contenders, so that whatever else the machine does hits all of them alike.
"""

import collections
import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import originals

from patchlib import cost, machine, models, optimizers, parameters, training
from patchlib.backend import keras
from patchlib.data import Data, Split, load_data


class Contender:
    """A compiled model with something to train on; its public methods are the tasks.

    Args:
        architecture: of ``patchlib.models``.
        parameters: of its notebook.
        original: whether to build and feed the original's model instead.
        images: how many random images to train on. How long a step takes doesn't depend on what they show.
        dataset: train on this one instead.
    """

    def __init__(self, architecture: str, parameters: dict, original: bool = False, images: int = 512, dataset=""):
        keras.utils.set_random_seed(parameters["seed"])
        self.p = _SCHEMAS[architecture](**parameters)
        if dataset:
            self.data = load_data(dataset, limit=self.p.limit, validation=self.p.validation)
        else:
            self.data = _random_data(
                images, self.p.image_size or 32, 10 if architecture in ("convmixer", "cct") else 100
            )
        train, classes = self.data.train, self.data.num_classes
        self.original, self.epoch, self.seconds = original, 0, 0.0
        if original:
            self.model = getattr(originals, architecture)(classes)
            self.fed = originals.batches(architecture, train.images, train.labels, classes)
        else:
            build = getattr(models, architecture)
            scaled = getattr(self.p, "standardize", architecture not in ("convmixer", "vit"))
            pixels = {"mean": self.data.mean, "std": self.data.std} if scaled else {}
            arguments = self.p.arguments(build) | pixels
            dtype = machine.precision() if self.p.precision == "auto" else self.p.precision
            self.model = build(self.data.input_shape, classes, dtype=dtype, **arguments)
            optimizers.compile_model(self.model, self.p, len(self._batches()))

    def _batches(self):
        return training.Batches(self.data.train, self.data.num_classes, self.p, self.epoch)

    def train(self) -> float:
        """Seconds of a training step, input and all: those of ``fit`` over an epoch but for the first step."""
        _, first, *_, last = self._fit()
        return (last - first) / (len(self._batches()) - 1)

    def until(self) -> dict:
        """Train for an epoch and validate: seconds of training in all epochs so far, and the accuracy reached."""
        start, *_, last = self._fit()
        self.seconds += last - start
        predicted = self.model.predict(self.data.validation.images, batch_size=self.p.batch_size, verbose=0)
        accuracy = float(np.mean(predicted.argmax(1) == self.data.validation.labels))
        return {"epoch": self.epoch, "seconds": self.seconds, "val_accuracy": accuracy}

    def _fit(self):
        """When ``fit`` began, and when each of its steps ended. How long it tidies up after them varies wildly."""
        times = [time.perf_counter()]

        def tick(step, logs):
            float(logs["loss"])  # waits for the step's end, where the backend runs ahead
            times.append(time.perf_counter())

        fed = self.fed if self.original else {"x": self._batches(), "shuffle": False}
        self.model.fit(**fed, epochs=1, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=tick)])
        self.epoch += 1
        if self.epoch == 1:
            _spread_threads()
        return times

    def infer(self) -> float:
        """Images a second by ``predict``, but for the first batch."""
        ends = []

        def tick(step, logs):
            np.asarray(logs["outputs"])  # waits for them
            ends.append(time.perf_counter())

        callback = keras.callbacks.LambdaCallback(on_predict_batch_end=tick)
        self.model.predict(self.data.train.images, batch_size=128, verbose=0, callbacks=[callback])
        return 128 * (len(ends) - 1) / (ends[-1] - ends[0])

    def feed(self) -> float:
        """Images a second that the input pipeline alone delivers, on one core."""
        batches = self._batches()
        start = time.perf_counter()
        for step in range(len(batches)):
            batches[step]
        return len(batches) * batches.batch_size / (time.perf_counter() - start)

    def memory(self) -> int:
        """The most memory that this process has had, in bytes; ask after training."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def work(self) -> dict:
        """What a training step can't do without: multiply-adds, and bytes that go to memory or come from it.

        Forward, for the input's gradient and for the weights', each multiply-add happens three times. What a layer puts
        out is written and read, and so is its gradient. A weight is read on both ways, its gradient written and read,
        and AdamW reads and writes it with two moments.
        """
        batch, weights = self.p.batch_size, self.model.count_params()
        outputs = sum(int(np.prod(layer.output.shape[1:])) for layer in self.model.layers)
        multiply_adds = sum(cost.of(self.model)["multiply_adds"].values())
        return {"multiply_adds": 3 * batch * multiply_adds, "bytes": 4 * (4 * batch * outputs + 10 * weights)}

    def machine(self) -> dict:
        """The best of ten attempts: multiply-adds of a matrix product, and bytes copied, a second."""
        a = keras.ops.ones((2048, 2048))
        source, target = np.ones(2**26, "float32"), np.empty(2**26, "float32")
        product, copy = (
            min(_seconds(lambda: keras.ops.convert_to_numpy(keras.ops.matmul(a, a)[0, 0])) for _ in range(10)),
            min(_seconds(lambda: np.copyto(target, source)) for _ in range(10)),
        )
        return {"multiply_adds": 2048**3 / product, "bytes": 2 * source.nbytes / copy}

    def profile(self) -> dict:
        """Milliseconds of a training step in each kind of operation, summed over threads, the longest first."""
        import tensorflow as tf
        from tensorflow.tsl.profiler.protobuf import xplane_pb2

        with tempfile.TemporaryDirectory() as folder:
            tf.profiler.experimental.start(folder)
            self.train()
            tf.profiler.experimental.stop()
            (path,) = Path(folder).rglob("*.xplane.pb")
            space = xplane_pb2.XSpace.FromString(path.read_bytes())
        spent = collections.Counter()
        for plane in space.planes:
            for event in (event for line in plane.lines for event in line.events if plane.name == "/host:CPU"):
                kind = plane.event_metadata[event.metadata_id].name.rpartition(":")[-1]
                if kind.startswith("_Mkl") or hasattr(tf.raw_ops, kind):
                    spent[kind] += event.duration_ps / 1e9 / len(self._batches())
        return dict(spent.most_common(12))


_SCHEMAS = parameters.ARCHITECTURES


def _random_data(images, side, classes):
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (images, side, side, 3), "uint8"), rng.integers(0, classes, images))
    return Data("random", split, split, split, tuple(map(str, range(classes))), fingerprint="")


def _spread_threads():
    """Bind this process's threads to the cores in turn: a scheduler may else keep two on one for seconds."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    for i, thread in enumerate(sorted(os.listdir("/proc/self/task"), key=int)):
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(thread), {cores[i % len(cores)]})


def _seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    out, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed is no result
    contender = Contender(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        print(json.dumps(getattr(contender, line.strip())()), file=out, flush=True)
