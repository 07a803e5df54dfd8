"""One contender, in a process of its own: it builds a model, then does the task that each line on its input names.

Its only argument is the JSON of ``Contender``'s; each line out is a task's result, as JSON. ``bench.py`` is at the
other end and takes turns between contenders, so that whatever else the machine does hits all of them alike.
"""

import collections
import concurrent.futures
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
from patchlib.data import Data, Split


class Contender:
    """A compiled model with something to train on; its public methods are the tasks.

    Args:
        architecture: of ``patchlib.models``.
        parameters: of its notebook.
        original: whether to build and feed the original's model instead.
        images: how many random images to train on. How long a step takes doesn't depend on what they show.
    """

    def __init__(self, architecture: str, parameters: dict, original: bool = False, images: int = 512):
        keras.utils.set_random_seed(parameters["seed"])
        self.p = _SCHEMAS[architecture](**parameters)
        self.data = _random_data(images, self.p.image_size or 32, {"cifar10": 10, "cifar100": 100}[self.p.dataset])
        train, classes = self.data.train, self.data.num_classes
        self.original, self.epoch = original, 0
        if original:
            self.model = getattr(originals, architecture)(classes)
            self.fed = originals.batches(architecture, train.images, train.labels, classes)
        else:
            dtype = machine.precision() if self.p.precision == "auto" else self.p.precision
            self.model = models.build(self.p, self.data, dtype)
            optimizers.compile_model(self.model, self.p, len(self._batches()))

    def _batches(self):
        return training.Batches(self.data.train, self.data.num_classes, self.p, self.epoch)

    def train(self) -> float:
        """Seconds of training on 128 images, input and all: those of ``fit`` over an epoch but for the first step."""
        _, first, *_, last = self._fit()
        return (last - first) / (len(self._batches()) - 1) * 128 / self.p.batch_size

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

    def feed(self, workers: str) -> float:
        """Images a second that so many threads prepare."""
        batches = self._batches()
        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(int(workers)) as pool:
            collections.deque(pool.map(batches.__getitem__, range(len(batches))), maxlen=0)
        return len(batches) * batches.batch_size / (time.perf_counter() - start)

    def multiply_adds(self) -> int:
        """Of one image's logits."""
        return sum(cost.of(self.model)["multiply_adds"].values())

    def memory(self) -> int:
        """The most memory that this process has had, in bytes; ask after training."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def floor(self) -> dict:
        """What training on 128 images can't do without, in seconds at this machine's best.

        Forward, for the input's gradient and for the weights', each multiply-add happens three times. What a layer puts
        out is written and read, and so is its gradient, each number in as many bytes as the model computes in.
        """
        outputs = sum(int(np.prod(layer.output.shape[1:])) for layer in self.model.layers)
        dtype = "bfloat16" if optimizers.dtype_policy(self.model) == "mixed_bfloat16" else "float32"
        square = keras.ops.ones((4096, 4096), dtype)
        source, target = np.ones(2**26, "float32"), np.empty(2**26, "float32")
        product, copy = (
            min(_seconds(work) for _ in range(10))
            for work in (lambda: np.asarray(keras.ops.matmul(square, square)[0, :1]), lambda: np.copyto(target, source))
        )
        rates = {"multiply_adds": 4096**3 / product, "bytes": 2 * source.nbytes / copy}
        size = 2 if dtype == "bfloat16" else 4
        needed = {"multiply_adds": 3 * 128 * self.multiply_adds(), "bytes": size * 4 * 128 * outputs}
        return {what: needed[what] / rates[what] for what in needed} | {"rates": rates}

    def profile(self) -> dict:
        """Milliseconds of 128 images in each kind of operation, summed over threads, the longest first."""
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
                    spent[kind] += event.duration_ps / 1e9 / len(self._batches()) * 128 / self.p.batch_size
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
        task, *arguments = line.split()
        print(json.dumps(getattr(contender, task)(*arguments)), file=out, flush=True)
