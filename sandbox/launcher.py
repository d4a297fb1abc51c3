"""From what a `Sandbox` says to a launch: what was compiled of it, and root trees that are kept between launches."""

import errno
import os
import sys
from dataclasses import replace
from functools import partial
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from sandbox import host, launch
from sandbox.compiler import Compiled, compile_plan, compile_tree
from sandbox.compiler.draft import Variant
from sandbox.compiler.filters import filter_of, notifies
from sandbox.control import ProcessControl
from sandbox.errors import FilterError, SetupError
from sandbox.exchange import Budget
from sandbox.identity import Caller, caller, fresh, id_mapper, inside_ids, owners, values
from sandbox.launch import Setup, native
from sandbox.launch.native import Kept
from sandbox.limits import asks_group
from sandbox.order import Environment, Order
from sandbox.plan import Command, Plan
from sandbox.process import Process
from sandbox.records import parse_identity
from sandbox.result import Enforced
from sandbox.rootfs import Bind, Root
from sandbox.spec import Spec
from sandbox.streams import Streams, close_all
from sandbox.template import Template, candidates

if TYPE_CHECKING:
    from sandbox.cgroups import Chosen
    from sandbox.cgroups.group import Group
    from sandbox.launch.entry import Entry
    from sandbox.process_async import Process_async
    from sandbox.rootfs import Tree

C = TypeVar("C", bound=ProcessControl)

_MAX_VARIANTS: Final = 16
_MAX_TREES: Final = 8
_PLAIN: Final = Variant()
_EXECUTABLE: Final = os.fsencode(sys.executable or "")


def is_this_python(program: bytes) -> bool:
    """Say whether a program is this process's interpreter, and not one that every sandbox has."""
    if not program or program != _EXECUTABLE:
        return False
    from sandbox import interpreter

    return interpreter.is_elsewhere()


class _Ready:
    """A compiled plan with all that a launch needs beside it."""

    __slots__ = ("compiled", "template", "tree")

    def __init__(self, compiled: Compiled, tree: "Kept | None") -> None:
        self.compiled = compiled
        self.template = Template(compiled.plan)
        self.tree = tree


class _Cache:
    """What was compiled of one Sandbox for one caller."""

    __slots__ = ("env", "fresh", "gid", "grouped", "inside", "map_ids", "owners", "ready", "stamp", "uid", "who")

    def __init__(self, spec: Spec, uid: int, gid: int, stamp: int) -> None:
        self.uid, self.gid, self.stamp = uid, gid, stamp
        self.grouped = bool(asks_group(spec.limits))
        self.who = caller(spec)
        self.fresh = fresh(spec, self.who)
        self.inside = inside_ids(spec, self.who)
        self.owners = owners(spec, self.who)
        self.map_ids = id_mapper(spec, self.who)
        self.env = Environment(dict(spec.env))
        # How often a variant was launched, then what serves it from the second time on.
        self.ready: dict[Variant, _Ready | None] = {}


class _Trees:
    """Root trees that were built once, as detached mounts; the least recently used is given up."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Tree, Caller], Kept] = {}

    def get(self, tree: "Tree", who: Caller) -> "Kept | None":
        """Return a tree's descriptor; None when this kernel cannot clone detached trees."""
        with native.lock:
            return self._get((tree, who))

    def _get(self, key: "tuple[Tree, Caller]") -> "Kept | None":
        tree, who = key
        kept = self._kept.pop(key, None)
        if kept is None or not kept.valid():
            ids = (
                ("uid_map", f"{who.uid} {who.uid} 1\n".encode()),
                ("gid_map", f"{who.gid} {who.gid} 1\n".encode()),
            )
            try:
                (fd,) = launch.build(Template(compile_tree(tree, who)), Command(values=ids))
            except SetupError:
                # Before Linux 6.15; or a cause that the launch itself will meet and report.
                return None
            kept = Kept(fd)
            # A file system that is gone may leave its device number, too, to this one.
            for other in self._kept.values():
                if other.fd == fd:
                    other.fd = -1
        self._kept[key] = kept
        while len(self._kept) > _MAX_TREES:
            self._kept.pop(next(iter(self._kept))).close()
        return kept


_trees = _Trees()


def _compiled(cache: _Cache, spec: Spec, variant: Variant) -> Compiled:
    return compile_plan(spec, cache.who, variant)


def _lacking(compiled: Compiled, missing: tuple[str, ...]) -> Compiled:
    """Add to what is missing in a sandbox."""
    if not missing:
        return compiled
    return compiled._replace(layers=compiled.layers._replace(missing=compiled.layers.missing + missing))


def _prepare(cache: _Cache, spec: Spec, variant: Variant) -> _Ready:
    """Compile a variant; the second launch of it builds the tree that all later ones clone."""
    compiled = _compiled(cache, spec, variant)
    if variant not in cache.ready:
        if len(cache.ready) >= _MAX_VARIANTS:
            cache.ready.clear()
        # One launch alone does not pay for a tree that is kept.
        cache.ready[variant] = None
        return _Ready(compiled, None)
    tree = _trees.get(compiled.tree, cache.who) if compiled.tree.nodes else None
    if tree is not None:
        compiled = _compiled(cache, spec, variant._replace(cached_tree=True))
    ready = cache.ready[variant] = _Ready(compiled, tree)
    return ready


def _renumber(error: SetupError, made: Plan, shown: Plan) -> None:
    """Give an error of a launch that cloned its tree the number that the step has in `plan()`, which builds it."""
    failed = made.steps[error.step - 1]
    for step in shown.steps:
        if (step.segment, step.origin, str(step)) == (failed.segment, failed.origin, str(failed)):
            error.step, error.steps = step.number, len(shown.steps)
            return


def _prepared(cache: _Cache, spec: Spec, variant: Variant) -> tuple[_Ready, int]:
    """Return what serves a launch, with a copy of its tree's descriptor, -1 for none, for the caller to close."""
    ready = cache.ready.get(variant)
    while True:
        if ready is None:
            ready = _prepare(cache, spec, variant)
        if ready.tree is None:
            return ready, -1
        tree = ready.tree.copy()
        if tree is not None:
            return ready, tree
        ready = None  # given up, or closed by the caller: made again


def in_groups(spec: Spec, variant: Variant) -> "tuple[Variant, Chosen]":
    """Return a variant with the steps of the control groups that a launch would make now, and where.

    Raises:
        UnsupportedError: No control group of this caller can keep a limit, and it was not best_effort.
    """
    from sandbox import cgroups

    chosen = cgroups.choose(spec.limits)
    counts = chosen.counts and spec.limits.cpu_time is not None
    changed = variant._replace(groups=chosen.versions, counts=counts, thaws=chosen.thaws, instead=chosen.weak)
    return changed._replace(unshield=spec.limits.memory is not None and cgroups.shielded()), chosen


def _read(setup: Setup, compiled: Compiled) -> Enforced:
    return parse_identity(setup.identity, compiled.layers) if setup.identity else Enforced()


def _variant(order: Order) -> Variant:
    """Return what an order changes in the plan, but for control groups."""
    python = order.program == _EXECUTABLE and is_this_python(order.program)
    if not order.fds and order.cwd is None and not order.pty and not order.hold and not python:
        return _PLAIN
    return Variant(tuple(order.fds), hold=order.hold, cwd=order.cwd, pty=bool(order.pty), python=python)


class Prepared(NamedTuple):
    """All that a launch needs, for `launch.Setup`; `close` it when the payload has started or has not."""

    cache: _Cache
    variant: Variant
    compiled: Compiled
    template: Template
    command: Command
    slots: list[int]
    ours: list[int]
    ids: tuple[int, int]  # on the host
    group: "Group | None" = None

    def close(self) -> None:
        """Close what was opened for this launch alone."""
        close_all(self.ours)
        if self.group is not None:
            self.group.close_inner()


def _further(running: Prepared, order: Order) -> Variant:
    """Return the variant of one more command."""
    return running.variant._replace(
        fds=tuple(order.fds), hold=False, cwd=order.cwd, cached_tree=False, pty=bool(order.pty), further=True
    )


class Launcher:
    """Launches what one `Sandbox` says; keeps what was compiled of it."""

    __slots__ = ("_cache", "_spec")

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._cache: _Cache | None = None

    def launch(self, order: Order, streams: Streams) -> Process[Any]:
        """Launch, and return when the program has been executed.

        Raises:
            SetupError: A step failed; the payload has not run and nothing is left behind.
        """
        if order.deadline is not None:
            self._await_sources(order, order.deadline)
        prepared, setup = self._begin(order, streams)
        try:
            launch.run(setup, prepared.slots)
        except BaseException as error:
            self.failed(prepared, error, stuck=setup.stuck)
            raise
        finally:
            prepared.close()
        return self._started(Process, order, setup, prepared, None)

    async def launch_async(self, order: Order, streams: Streams) -> "Process_async":
        """Launch as `launch` does, without blocking the running loop.

        Raises:
            SetupError: A step failed; the payload has not run and nothing is left behind.
        """
        from sandbox.process_async import run_setup

        await self._await_sources_async(order)
        prepared, setup = self._begin(order, streams)
        try:
            await run_setup(setup, prepared.slots)
        except BaseException as error:
            self.failed(prepared, error, stuck=setup.stuck)
            raise
        finally:
            prepared.close()
        return await self._started_async(order, setup, prepared, None)

    def _looks_at(self, order: Order) -> list[Bind | Root]:
        """Return whose source this launch looks at itself, before there is anything that could be given up."""
        cache = self._cache
        if cache is not None and not (cache.owners or cache.grouped) and cache.ready.get(_variant(order)) is not None:
            return []
        return [entry for entry in self._spec.entries if isinstance(entry, Bind | Root)]

    def _await_sources(self, order: Order, deadline: float) -> None:
        """Wait until each source has answered.

        Raises:
            SetupError: Of no step, with ETIMEDOUT: the time is over.
        """
        entries = self._looks_at(order)
        if entries:
            from sandbox.answering import Look

            answered = Event()
            look = Look(entries, answered.set)
            if not answered.wait(max(0.0, deadline - monotonic())):
                raise look.late()

    async def _await_sources_async(self, order: Order) -> None:
        entries = self._looks_at(order)
        if entries:
            from sandbox.answering import answer

            await answer(entries, order.deadline)

    def _begin(self, order: Order, streams: Streams) -> tuple[Prepared, Setup]:
        try:
            prepared = self.prepare(order, streams)
        except OSError as error:
            raise native.explained(error) from None
        setup = Setup(
            prepared.template,
            prepared.command,
            listens=prepared.compiled.listens,
            held=order.hold,
            map_ids=prepared.cache.map_ids,
            deadline=order.deadline,
        )
        return prepared, setup

    def enter(self, running: Prepared, sandbox: ProcessControl, order: Order, streams: Streams) -> Process[Any]:
        """Start one more command in a sandbox that runs, under every layer; return when its program was executed.

        Args:
            running: What the sandbox was launched with.
            sandbox: Its first command.
            order: The command.
            streams: Its streams.

        Raises:
            SetupError: A step failed, or the sandbox has ended or is full; the program has not run.
        """
        prepared, setup = self._begin_entry(running, sandbox, order, streams)
        try:
            launch.run(setup, prepared.slots)
        finally:
            prepared.close()
        return self._started(Process, order, setup, prepared, sandbox)

    async def enter_async(
        self, running: Prepared, sandbox: ProcessControl, order: Order, streams: Streams
    ) -> "Process_async":
        """Start one more command as `enter` does, without blocking the running loop.

        Raises:
            SetupError: A step failed, or the sandbox has ended or is full; the program has not run.
        """
        from sandbox.process_async import run_setup

        prepared, setup = self._begin_entry(running, sandbox, order, streams)
        try:
            await run_setup(setup, prepared.slots)
        finally:
            prepared.close()
        return await self._started_async(order, setup, prepared, sandbox)

    def _begin_entry(
        self, running: Prepared, sandbox: ProcessControl, order: Order, streams: Streams
    ) -> "tuple[Prepared, Entry]":
        prepared = self._prepare_entry(running, sandbox, order, streams)
        from sandbox.launch.entry import Entry

        compiled = prepared.compiled
        return prepared, Entry(
            prepared.template,
            prepared.command,
            sandbox._ask_init,
            listens=compiled.listens,
            deadline=order.deadline,
        )

    def _prepare_entry(self, running: Prepared, sandbox: ProcessControl, order: Order, streams: Streams) -> Prepared:
        self._refuse_unattended(order)
        cache = running.cache
        variables = cache.env if order.env is None else order.env
        variant = _further(running, order)
        ready = cache.ready.get(variant)
        if ready is None:
            if len(cache.ready) >= _MAX_VARIANTS:
                cache.ready.clear()
            ready = cache.ready[variant] = _Ready(_compiled(cache, self._spec, variant), None)
        compiled, template = ready.compiled, ready.template if order.plan is None else Template(order.plan)
        slots = [-1] * template.slots
        slots[3:6] = streams.child
        for number, slot in compiled.fd_slots.items():
            slots[slot.number] = order.fds[number]
        ours = []
        if compiled.first_slot is not None:
            ours.append(sandbox._payload_pidfd())
            slots[compiled.first_slot.number] = ours[0]
        if cache.fresh:
            streams.give_pipes(*running.ids)
        command = Command(order.argv, variables.encoded, candidates(order.program, variables.path), order.pty)
        return Prepared(cache, variant, compiled, template, command, slots, ours, running.ids)

    def further_plan(self, running: Prepared, order: Order) -> Plan:
        """Return the plan of one more command in a sandbox that runs."""
        compiled = _compiled(running.cache, self._spec, _further(running, order))
        variables = running.cache.env
        command = Command(order.argv, variables.encoded, candidates(order.program, variables.path))
        return replace(compiled.plan, command=command)

    def _started(
        self, kind: type[C], order: Order, setup: Setup, prepared: Prepared, sandbox: ProcessControl | None
    ) -> C:
        identity = _read(setup, prepared.compiled)
        process = kind(
            order.args,
            setup.control,
            setup.init_pid if sandbox is None else sandbox.init_pid,
            setup.init_pidfd,
            identity,
            name=order.name,
            held=order.hold,
            sandbox=sandbox,
        )
        try:
            self._complete(process, setup, prepared)
        except BaseException:
            process._abandon()
            raise
        if sandbox is None:
            process._enter = partial(self.enter, prepared)
            process._enter_async = partial(self.enter_async, prepared)
            process._further_plan = partial(self.further_plan, prepared)
        else:
            process._begin_further()
        return process

    async def _started_async(
        self, order: Order, setup: Setup, prepared: Prepared, sandbox: ProcessControl | None
    ) -> "Process_async":
        from sandbox.process_async import Process_async

        process = self._started(Process_async, order, setup, prepared, sandbox)
        process._watch()
        return process

    def _complete(self, process: ProcessControl, setup: Setup, prepared: Prepared) -> None:
        """Give a process what its launch knows beside the identity."""
        compiled = prepared.compiled
        process._layers = compiled.layers
        process._failed = setup.failed
        process._inner_pidfd = setup.inner_pidfd
        limits = compiled.layers.limits
        if limits.output is not None:
            process._budget = Budget(limits.output, process._stop_flood if limits.when_output_full == "kill" else None)
        if prepared.group is not None:
            process._adopt(prepared.group)
        if setup.terminal >= 0:
            from sandbox.terminal import Terminal

            process.terminal = Terminal(setup.terminal)
        if compiled.listens:
            spec = self._spec
            observed = filter_of(spec, prepared.cache.who) if spec.observe else None
            process._supervise = partial(process._answer_for, observed=observed)
            if setup.fds:
                process._supervise(setup.fds.pop())
        if setup.ended is not None:
            process._take(setup.ended)
        if prepared.variant.hold:
            from sandbox.readback import complete

            process.enforced = process._in_group(complete(process.enforced, process.pid))

    def prepare(self, order: Order, streams: Streams) -> Prepared:
        """Compile what is not compiled yet, and put together what differs from launch to launch."""
        spec = self._spec
        self._refuse_unattended(order)
        cache = self._cache
        uid, gid, stamp = os.geteuid(), os.getegid(), host.stamp()
        if (
            cache is None
            or cache.uid != uid
            or cache.gid != gid
            or cache.stamp != stamp
            or (cache.owners and cache.owners != owners(spec, cache.who))
        ):
            cache = self._cache = _Cache(spec, uid, gid, stamp)
        variables = cache.env if order.env is None else order.env
        extra = order.fds
        variant = _variant(order)
        chosen = None
        if cache.grouped:
            variant, chosen = in_groups(spec, variant)
        ready, tree = _prepared(cache, spec, variant)
        ours = [tree] if tree >= 0 else []
        group: Group | None = None
        try:
            compiled, template = ready.compiled, ready.template
            if order.plan is not None:
                compiled, template = compile_plan(spec, cache.who, variant), Template(order.plan)
            slots = [-1] * template.slots
            slots[3:6] = streams.child
            for number, slot in compiled.fd_slots.items():
                slots[slot.number] = extra[number]
            if compiled.tree_slot is not None:
                slots[compiled.tree_slot.number] = tree
            first = 0
            if cache.fresh:
                from sandbox.host_ids import claim

                first, claimed = claim(spec.id_ranges)
                ours.append(claimed)
                slots[2] = claimed
            (uid, gid), filled = values(spec, cache.who, cache.inside, compiled.idmaps, first)
            if cache.fresh:
                streams.give_pipes(uid, gid)
            if chosen is not None:
                compiled = _lacking(compiled, chosen.missing)
                if chosen.places:
                    from sandbox import cgroups

                    called = order.name or os.path.basename(order.argv[0]).decode(errors="replace")
                    group = cgroups.make(chosen, spec.limits, called)
                    fds = group.slots(counts=variant.counts)
                    for slot, fd in zip(compiled.group_slots, fds, strict=True):
                        slots[slot.number] = fd
        except BaseException:
            close_all(ours)
            if group is not None:
                group.remove()
            raise
        command = Command(
            order.argv, variables.encoded, candidates(order.program, variables.path), (*filled, *order.pty)
        )
        return Prepared(cache, variant, compiled, template, command, slots, ours, (uid, gid), group)

    def failed(self, prepared: Prepared, error: BaseException, *, stuck: bool = False) -> None:
        """Look at what ended a launch: facts of the host may have changed since the plan was compiled."""
        if stuck and prepared.group is not None:
            # Whoever launches next at the same place removes it.
            prepared.group.give_up()
            return
        if isinstance(error, SetupError):
            self._cache = None
            out_of_memory = None
            if prepared.group is not None:
                out_of_memory = prepared.group.oom()
                if out_of_memory is None and error.errno in {errno.ECHILD, errno.ENOMEM}:
                    out_of_memory = prepared.group.full()
            if out_of_memory is not None:
                error.hint = f"{out_of_memory}; the set-up itself takes some hundred KiB of limit(memory=)"
            elif error.errno == errno.ENOENT and error.call.startswith("execve(") and error.filename:
                from sandbox.shown import why_hidden

                error.hint = why_hidden(self._spec, error.filename) or error.hint
        self._dismiss(prepared)
        if isinstance(error, SetupError) and error.step and prepared.compiled.tree_slot is not None:
            shown = compile_plan(self._spec, prepared.cache.who, prepared.variant).plan
            _renumber(error, prepared.compiled.plan, shown)

    @staticmethod
    def _dismiss(prepared: Prepared) -> None:
        """Remove the control group of a launch that came to nothing."""
        if prepared.group is not None:
            prepared.group.remove()

    def _refuse_unattended(self, order: Order) -> None:
        if not order.attended and not self._spec.observe and self._asks():
            raise FilterError(
                "this filter says Notify, and run() leaves nobody to answer: use popen() and its notifier"
            )

    def _asks(self) -> bool:
        """Say whether the filter has questions for a supervisor."""
        return not isinstance(self._spec.filter, str | None) and notifies(self._spec.filter.to_bytes())
