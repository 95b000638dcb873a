"""What a Space on ZeroGPU gets as `spaces`, as far as a machine without a GPU can be one.

A decorated generator runs in a forked process. Its arguments and what it yields cross by pickle, tensors are refused,
and of errors only gr.Error keeps its message. Each call is a lease, noted as a line in the file that LEASES names.
"""

import inspect
import io
import json
import multiprocessing
import os
import pickle
from functools import partial

import gradio as gr
import torch

fork = multiprocessing.get_context("fork")


class Plain(pickle.Pickler):
    def reducer_override(self, thing):
        if isinstance(thing, torch.Tensor):
            raise TypeError("a tensor is not to cross between the processes")
        return NotImplemented


def packed(thing) -> bytes:
    out = io.BytesIO()
    Plain(out).dump(thing)
    return out.getvalue()


def GPU(task=None, *, duration=60):
    if task is None:
        return partial(GPU, duration=duration)
    if not inspect.isgeneratorfunction(task):
        raise NotImplementedError("this stand-in runs generators")

    def leased(*args):
        with open(os.environ["LEASES"], "a") as log:
            log.write(json.dumps({"duration": duration}) + "\n")
        here, there = fork.Pipe()
        process = fork.Process(target=work, args=(task, packed(args), there), daemon=True)
        process.start()
        there.close()
        try:
            while (found := pickle.loads(here.recv_bytes()))[0] == "yield":
                yield found[1]
        except EOFError:
            raise gr.Error("GPU task aborted") from None
        finally:
            process.terminate()
            process.join()
        if found[0] == "error":
            raise found[1]

    return leased


def work(task, args: bytes, pipe) -> None:
    try:
        for value in task(*pickle.loads(args)):
            pipe.send_bytes(packed(("yield", value)))
        pipe.send_bytes(packed(("end", None)))
    except Exception as error:
        kept = error if isinstance(error, gr.Error) else gr.Error(type(error).__name__)
        pipe.send_bytes(packed(("error", kept)))
