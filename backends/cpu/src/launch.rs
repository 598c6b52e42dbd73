//! The compute queue: launches, in order, on the device's own workers.
//!
//! **Guarantee:** launches run one after another in the order of their submission; each group of a launch runs exactly once,
//! on some worker, unless one of them fails: then no further group begins. A panic in a kernel ends that launch as failed and no other.
//!
//! A plain value goes by value to every group. Launches whose value is too large for that on a worker's stack run on threads of their
//! own with larger stacks, as many as there are workers.
//!
//! **States of a launch:** queued, running, ended (its point is reached). Failures are kept until `outcome` takes them; a launch
//! that went well leaves nothing behind. `active` says that a *drain* job is on its way through the queue: set by the submitter
//! that finds it clear, cleared by the drain job that finds the queue empty, both under the queue's lock.
//!
//! **Locks:** `queue` for list operations, `failures` and `kernels` for single accesses; none is held while a kernel runs or a
//! point is waited for, and no two at once.

use std::collections::{HashMap, VecDeque};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::*};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rayon::ThreadPool;
use rayon::prelude::*;
use smallvec::SmallVec;
use sterna_hal::kernel::{Code, Group, Mapping, RawArg, RustForm};
use sterna_hal::{DeviceError, Groups, KernelError, KernelId, Outcome, Point, Ticket};
use sterna_host::sys;

use crate::failing::{Failing, Running};
use crate::signals::{COMPUTE, Signals};
use sterna_host::sys::unblock_faults;

/// Bytes of a plain value that groups take on a worker's own stack, of 2 MiB. Code that is not optimised has it there several times.
const ON_A_WORKER: usize = 64 << 10;
/// How often a larger value may lie on the stack of a group.
const COPIES: usize = 16;
/// What a group has of stack beside that.
const STACK: usize = 2 << 20;

/// Launches for which there is room without asking for memory, once the queue has been empty.
const KEPT: usize = 256;

/// An argument, copied.
#[derive(Debug)]
pub(crate) enum OwnArg {
    Buffer { at: NonNull<u8>, bytes: u64, mapping: Mapping },
    Plain(SmallVec<[u8; 32]>),
}

/// The arguments of a launch, copied.
pub(crate) type OwnArgs = SmallVec<[OwnArg; 6]>;

#[derive(Debug)]
enum Part {
    Range(u32, u32),
    List(Box<[u32]>),
}

#[derive(Debug)]
struct Task {
    form: RustForm,
    grid: [u32; 3],
    part: Part,
    args: OwnArgs,
    /// Points of other queues only: those of this one are reached anyway.
    after: SmallVec<[Point; 2]>,
    value: u64,
    /// How much later than its end it is to be reached.
    late: Duration,
}

// SAFETY: the addresses in it are of the window, where only kernels access them, on whichever worker runs them.
unsafe impl Send for Task {}

#[derive(Debug, Default)]
struct Queue {
    tasks: VecDeque<Task>,
    active: bool,
    submitted: u64,
}

#[derive(Debug, Default)]
struct Kernels {
    /// By number. What was unloaded keeps its number, which is given again.
    forms: Vec<RustForm>,
    ids: HashMap<Code, KernelId>,
    spare: Vec<KernelId>,
}

#[derive(Debug)]
pub(crate) struct Compute {
    queue: Mutex<Queue>,
    failures: Mutex<HashMap<u64, KernelError>>,
    /// How many failures are kept: `outcome` need not lock while there are none.
    failed: AtomicUsize,
    kernels: RwLock<Kernels>,
    signals: Arc<Signals>,
    workers: usize,
}

impl Compute {
    pub(crate) fn new(signals: Arc<Signals>, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            queue: Mutex::default(),
            failures: Mutex::default(),
            failed: AtomicUsize::new(0),
            kernels: RwLock::default(),
            signals,
            workers,
        })
    }

    pub(crate) fn load(&self, code: &Code) -> Result<KernelId, DeviceError> {
        let form = code.rust.ok_or_else(|| DeviceError::NoForm { kernel: code.name.into(), needs: "Rust" })?;
        if let Some(id) = self.kernels.read().ids.get(code) {
            return Ok(*id);
        }
        let mut kernels = self.kernels.write();
        let Kernels { forms, ids, spare } = &mut *kernels;
        Ok(*ids.entry(code.detached()).or_insert_with(|| match spare.pop() {
            Some(id) => {
                forms[id.0 as usize] = form;
                id
            }
            None => {
                forms.push(form);
                KernelId(forms.len() as u32 - 1)
            }
        }))
    }

    /// Forgets a kernel, of which no launch is unfinished.
    pub(crate) fn unload(&self, kernel: KernelId) {
        let mut kernels = self.kernels.write();
        let before = kernels.ids.len();
        kernels.ids.retain(|_, known| *known != kernel);
        if kernels.ids.len() < before {
            kernels.spare.push(kernel);
        }
    }

    /// Queues a launch whose arguments were checked.
    pub(crate) fn submit(
        self: &Arc<Self>,
        pool: &ThreadPool,
        kernel: KernelId,
        grid: [u32; 3],
        groups: Groups<'_>,
        args: OwnArgs,
        after: &[Point],
    ) -> Result<Ticket, DeviceError> {
        let form = self.kernels.read().forms.get(kernel.0 as usize).copied();
        let form = form.ok_or_else(|| sys::invalid("submit", format!("{kernel:?} was not loaded on this device")))?;
        let part = part_of(grid, groups)?;
        let after = after.iter().copied().filter(|p| p.queue != COMPUTE).collect();
        let late = self.signals.inject.launch_delay();
        let mut queue = self.queue.lock();
        queue.submitted += 1;
        let value = queue.submitted;
        queue.tasks.push_back(Task { form, grid, part, args, after, value, late });
        let idle = !std::mem::replace(&mut queue.active, true);
        drop(queue);
        if idle {
            let this = Arc::clone(self);
            pool.spawn(move || this.drain());
        }
        Ok(Ticket::new(value, Point { queue: COMPUTE, value }))
    }

    pub(crate) fn outcome(&self, done: Ticket) -> Outcome {
        debug_assert!(self.signals.compute().is_reached(done.point().value), "asked before the launch has ended");
        if self.failed.load(Acquire) == 0 {
            return Outcome::Done;
        }
        match self.failures.lock().remove(&done.id()) {
            Some(error) => {
                self.failed.fetch_sub(1, AcqRel);
                Outcome::Failed(error)
            }
            None => Outcome::Done,
        }
    }

    /// Whether launches are queued or running.
    pub(crate) fn busy(&self) -> bool {
        let submitted = self.queue.lock().submitted;
        !self.signals.compute().is_reached(submitted)
    }

    /// Runs what is queued until nothing is left. On a worker.
    fn drain(&self) {
        loop {
            let task = {
                let mut queue = self.queue.lock();
                match queue.tasks.pop_front() {
                    Some(task) => task,
                    None => {
                        // What a flood of launches needed is not kept.
                        queue.tasks.shrink_to(KEPT);
                        queue.active = false;
                        return;
                    }
                }
            };
            // Copies have threads of their own: this holds up launches and nothing that they could depend on.
            self.signals.wait_for_all(&task.after);
            if let Err(error) = self.run(&task) {
                self.failed.fetch_add(1, AcqRel);
                self.failures.lock().insert(task.value, error);
            }
            if !task.late.is_zero() {
                std::thread::sleep(task.late);
            }
            self.signals.compute().reach(task.value);
        }
    }

    fn run(&self, task: &Task) -> Result<(), KernelError> {
        let lost = || Err(KernelError::Lost(self.signals.loss()));
        if !self.signals.begin() {
            return lost();
        }
        let ended = self.run_groups(task);
        let losing = self.signals.losing_flag().load(SeqCst);
        self.signals.end();
        ended?;
        if losing { lost() } else { Ok(()) }
    }

    fn run_groups(&self, task: &Task) -> Result<(), KernelError> {
        let args: SmallVec<[RawArg<'_>; 6]> = task
            .args
            .iter()
            .map(|a| match a {
                OwnArg::Buffer { at, bytes, mapping } => RawArg::Buffer { at: *at, bytes: *bytes, mapping: *mapping },
                OwnArg::Plain(bytes) => RawArg::Plain(bytes),
            })
            .collect();
        let (form, grid, args) = (task.form, task.grid, Args(&args));
        let losing = self.signals.losing_flag();
        let failing = Failing::default();
        let group = |n: u32| {
            // The loss comes when those that run have ended.
            if !losing.load(Relaxed) {
                // SAFETY: the arguments fit the kernel, by the promise of `submit`; the list of groups names each once.
                failing.group(|| unsafe { form(Group::nth(n, grid), args.get()) });
            }
        };
        // By task, not by thread: a worker may do other work for rayon between two tasks.
        let mark = || Running::enter(&failing);
        match &task.part {
            part if task.value_bytes() > ON_A_WORKER => self.run_apart(part, task.value_bytes(), mark, group)?,
            Part::Range(first, end) if self.workers == 1 || end - first < 2 => {
                let _mark = mark();
                (*first..*end).for_each(group);
            }
            Part::Range(first, end) => (*first..*end).into_par_iter().for_each_init(mark, |_, n| group(n)),
            Part::List(list) => list.par_iter().for_each_init(mark, |_, n| group(*n)),
        }
        failing.outcome()
    }

    /// Runs the groups of a launch with a large value, on threads with room for it.
    fn run_apart<M>(
        &self,
        part: &Part,
        value: usize,
        mark: impl Fn() -> M + Sync,
        group: impl Fn(u32) + Sync,
    ) -> Result<(), KernelError> {
        let count = part.len();
        let next = AtomicU32::new(0);
        let work = || {
            unblock_faults();
            let _mark = mark();
            loop {
                let n = next.fetch_add(1, Relaxed);
                if n >= count {
                    return;
                }
                group(part.group(n));
            }
        };
        let threads = self.workers.min(count as usize);
        let stack = STACK + COPIES * value;
        let (mut started, mut refused) = (0, None);
        std::thread::scope(|s| {
            for _ in 0..threads {
                match std::thread::Builder::new().name("sterna-cpu-big".into()).stack_size(stack).spawn_scoped(s, work) {
                    Ok(_) => started += 1,
                    Err(e) => refused = Some(e),
                }
            }
        });
        match refused {
            Some(e) if started == 0 => {
                let what = format!("no thread with {stack} bytes of stack for a plain value of {value} bytes: {e}");
                Err(KernelError::Refused(format!("{what}; hand it over as a buffer, to be read whole")))
            }
            _ => Ok(()),
        }
    }
}

impl Task {
    fn value_bytes(&self) -> usize {
        let plain = |a: &OwnArg| if let OwnArg::Plain(bytes) = a { bytes.len() } else { 0 };
        self.args.iter().map(plain).max().unwrap_or(0)
    }
}

impl Part {
    fn len(&self) -> u32 {
        match self {
            Self::Range(first, end) => end - first,
            Self::List(list) => list.len() as u32,
        }
    }

    /// The linear number of the `n`-th group.
    fn group(&self, n: u32) -> u32 {
        match self {
            Self::Range(first, _) => first + n,
            Self::List(list) => list[n as usize],
        }
    }
}

/// Arguments that workers share.
#[derive(Clone, Copy)]
struct Args<'a>(&'a [RawArg<'a>]);

// SAFETY: only kernels look behind the addresses, and their parameters say what may be shared.
unsafe impl Sync for Args<'_> {}
// SAFETY: as above.
unsafe impl Send for Args<'_> {}

impl<'a> Args<'a> {
    /// A method, so that closures capture the whole and not the field.
    fn get(self) -> &'a [RawArg<'a>] {
        self.0
    }
}

fn part_of(grid: [u32; 3], groups: Groups<'_>) -> Result<Part, DeviceError> {
    let count = grid.iter().try_fold(1_u32, |n, g| n.checked_mul(*g)).filter(|n| *n > 0);
    let count = count.ok_or_else(|| sys::invalid("submit", format!("a grid of {grid:?} groups")))?;
    match groups {
        Groups::All => Ok(Part::Range(0, count)),
        Groups::Range(first, end) if first <= end && end <= count => Ok(Part::Range(first, end)),
        Groups::List(list) if list.iter().all(|n| *n < count) => Ok(Part::List(list.into())),
        Groups::Range(..) | Groups::List(_) => Err(sys::invalid("submit", format!("groups outside a grid of {count}"))),
    }
}
