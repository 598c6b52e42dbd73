//! A launch: arguments checked, uses recorded, and submitted at once where everything is resident.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytemuck::Pod;
use smallvec::SmallVec;
use sterna_hal::kernel::{
    Code, Each, EachMut, EachOut, Halo, Kernel, MOST_VALUE, Param, ParamDesc, Params, Scatter, ScatterElem, Whole,
};
use sterna_hal::{Absent, Access, Groups};

use crate::Error;
use crate::hmm::Mechanism;
use crate::hmm::entry;
use crate::hmm::grid;
use crate::hmm::inflight::{InFlight, Touch};
use crate::hmm::lock::Free;
use crate::hmm::mirror::{By, Call, DeviceMirror, Loaded, NotYet};
use crate::hmm::os;
use crate::hmm::uses::Of;
use crate::hmm::watch;
use crate::owned::ReadOnly;
use crate::pending::Pending;
use crate::runtime::Runtime;
use crate::shared::{Shared, SharedBytes, View, ViewMut};

mod sealed {
    pub trait Sealed {}
}

/// What a launch argument stands for.
#[derive(Debug)]
pub struct Bound<'a> {
    core: &'a SharedBytes,
}

/// An argument that fits parameter `P`: a reference to a [`Shared`] or a view, `&` for what is read, `&mut` for what is written. Sealed:
/// which reference may stand for which parameter is what makes a launch safe.
pub trait LaunchArg<P: Param>: sealed::Sealed {
    #[doc(hidden)]
    fn bind<'a>(self) -> Bound<'a>
    where
        Self: 'a;
}

macro_rules! reads {
    ($($handle:ty),*) => {$(
        impl<T: Pod> sealed::Sealed for &$handle {}
        reads!(@ $handle, Each<T>, T: Pod + Send + Sync);
        reads!(@ $handle, Halo<T>, T: Pod + Send + Sync);
        reads!(@ $handle, Whole<T>, T: Pod + Send + Sync);
    )*};
    (@ $handle:ty, $param:ty, $($bound:tt)*) => {
        impl<$($bound)*> LaunchArg<$param> for &$handle {
            fn bind<'a>(self) -> Bound<'a> where Self: 'a {
                self.0.note_read();
                Bound { core: &self.0.core }
            }
        }
    };
}
macro_rules! writes {
    ($($handle:ty),*) => {$(
        impl<T: Pod> sealed::Sealed for &mut $handle {}
        writes!(@ $handle, EachMut<T>, T: Pod + Send + Sync);
        writes!(@ $handle, EachOut<T>, T: Pod + Send + Sync);
        writes!(@ $handle, Scatter<T>, T: ScatterElem);
    )*};
    (@ $handle:ty, $param:ty, $($bound:tt)*) => {
        impl<$($bound)*> LaunchArg<$param> for &mut $handle {
            fn bind<'a>(self) -> Bound<'a> where Self: 'a {
                self.0.note_write();
                Bound { core: &self.0.core }
            }
        }
    };
}
reads!(Shared<T>, View<'_, T>, ViewMut<'_, T>);
writes!(Shared<T>, ViewMut<'_, T>);

impl<T: Pod> sealed::Sealed for &ReadOnly<T> {}

impl<P: Param, T: Pod> LaunchArg<P> for &ReadOnly<T>
where
    for<'s> &'s Shared<T>: LaunchArg<P>,
{
    fn bind<'a>(self) -> Bound<'a>
    where
        Self: 'a,
    {
        <&Shared<T> as LaunchArg<P>>::bind(&self.0)
    }
}

/// The arguments of a launch: a tuple that fits the kernel's parameters. Sealed, as [`LaunchArg`]: else an argument that was borrowed
/// for reading could be passed off as one that is written.
///
/// ```compile_fail,E0277
/// use sterna::kernel::EachMut;
/// use sterna::{Args, LaunchArg, Shared};
///
/// struct Mine<'s>(&'s Shared<f32>);
/// impl<'s> Args<(EachMut<f32>,)> for Mine<'s> {}
/// ```
pub trait Args<P: Params>: sealed::Sealed {
    #[doc(hidden)]
    fn bind<'a>(self) -> SmallVec<[Bound<'a>; 8]>
    where
        Self: 'a;
}

macro_rules! args_for_tuples {
    ($($p:ident $a:ident $i:tt),*) => {
        impl<$($p: Param, $a: LaunchArg<$p>),*> Args<($($p,)*)> for ($($a,)*) {
            fn bind<'a>(self) -> SmallVec<[Bound<'a>; 8]> where Self: 'a {
                smallvec::smallvec![$(self.$i.bind()),*]
            }
        }
    };
}
macro_rules! seal_tuples {
    ($($a:ident)*) => { impl<$($a: sealed::Sealed),*> sealed::Sealed for ($($a,)*) {} };
}
seal_tuples!(A0);
seal_tuples!(A0 A1);
seal_tuples!(A0 A1 A2);
seal_tuples!(A0 A1 A2 A3);
seal_tuples!(A0 A1 A2 A3 A4);
seal_tuples!(A0 A1 A2 A3 A4 A5);
seal_tuples!(A0 A1 A2 A3 A4 A5 A6);
seal_tuples!(A0 A1 A2 A3 A4 A5 A6 A7);
args_for_tuples!(P0 A0 0);
args_for_tuples!(P0 A0 0, P1 A1 1);
args_for_tuples!(P0 A0 0, P1 A1 1, P2 A2 2);
args_for_tuples!(P0 A0 0, P1 A1 1, P2 A2 2, P3 A3 3);
args_for_tuples!(P0 A0 0, P1 A1 1, P2 A2 2, P3 A3 3, P4 A4 4);
args_for_tuples!(P0 A0 0, P1 A1 1, P2 A2 2, P3 A3 3, P4 A4 4, P5 A5 5);
args_for_tuples!(P0 A0 0, P1 A1 1, P2 A2 2, P3 A3 3, P4 A4 4, P5 A5 5, P6 A6 6);
args_for_tuples!(P0 A0 0, P1 A1 1, P2 A2 2, P3 A3 3, P4 A4 4, P5 A5 5, P6 A6 6, P7 A7 7);

/// A launch with everything that the device will be told.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) kernel: Arc<Loaded>,
    pub(crate) value: SmallVec<[u8; 32]>,
    pub(crate) grid: [u32; 3],
    /// As many as the grid has.
    pub(crate) groups: u32,
    pub(crate) params: SmallVec<[ParamDesc; 4]>,
    pub(crate) touches: SmallVec<[Touch; 4]>,
}

impl Prepared {
    /// Submits it if everything is ready, or with `faults`, if the device may fault the rest in; `by` says who asks.
    pub(crate) fn submit(&self, mirror: &DeviceMirror, record: &Arc<InFlight>, faults: bool, by: By) -> Result<(), NotYet> {
        self.submit_groups(mirror, record, (Groups::All, &self.touches), faults, by)
    }

    /// As [`submit`](Self::submit), for some of its groups, which need these parts of the arguments.
    pub(crate) fn submit_groups(
        &self,
        mirror: &DeviceMirror,
        record: &Arc<InFlight>,
        (groups, needs): (Groups<'_>, &[Touch]),
        faults: bool,
        by: By,
    ) -> Result<(), NotYet> {
        let Self { ref kernel, grid, ref value, ref params, ref touches, .. } = *self;
        let call = Call { kernel: kernel.id, grid, value, params, touches };
        mirror.try_submit(call, (groups, needs), record, faults, by)?;
        // With the driver lock given back.
        watch::submitted(record);
        Ok(())
    }
}

impl Runtime {
    pub(crate) fn launch_on<P: Params, A: Args<P>>(
        &self,
        mirror: &Arc<DeviceMirror>,
        kernel: &Kernel<P>,
        args: A,
    ) -> Result<Pending, Error> {
        let bound = args.bind();
        self.launch_erased(mirror, kernel.code(), kernel.value(), &kernel.params(), kernel.explicit_grid(), &bound)
    }

    // Not generic and not inlined: locks are taken here, and nothing of the program may run under them.
    #[inline(never)]
    fn launch_erased(
        &self,
        mirror: &Arc<DeviceMirror>,
        code: &Code,
        value: &[u8],
        params: &[ParamDesc],
        grid: Option<[u32; 3]>,
        bound: &[Bound<'_>],
    ) -> Result<Pending, Error> {
        entry::check()?;
        os::accept_faults();
        let prepared = self.prepare(mirror, code, value, params, grid, bound)?;
        let inner = &self.0;
        mirror.reap();
        let counters = &mirror.rec().counters;
        counters.launches.fetch_add(1, Ordering::Relaxed);
        let sink = Arc::clone(&inner.errors);
        let (touches, kernel) = (prepared.touches.clone(), &prepared.kernel);
        let record = InFlight::new(self.next_launch(), kernel, Arc::clone(mirror), touches, sink);
        let waits = |t: &Touch| used_elsewhere(t, mirror.slot()) || is_tainted(t);
        let alone = mirror.crowded().is_none()
            && !inner.sched.holds_back(&prepared.touches, mirror.slot())
            && !prepared.touches.iter().any(waits);
        if alone {
            match prepared.submit(mirror, &record, false, By::Caller) {
                Ok(()) => {
                    counters.resident_launches.fetch_add(1, Ordering::Relaxed);
                    let tick = inner.space.tick();
                    let note = |due, t: &Touch| mirror.note_use(&t.seg.pages_of(&t.bytes), tick) || due;
                    if prepared.touches.iter().fold(false, note) {
                        mirror.write_ranks(&mut Free::at_entry());
                    }
                    return Ok(Pending(record));
                }
                Err(NotYet::Populate | NotYet::Held | NotYet::Pinned) => record.record(),
                Err(NotYet::Failed(e)) => {
                    record.refuse(mirror.noticed(e));
                    return Ok(Pending(record));
                }
            }
        } else {
            record.record();
        }
        inner.sched.launch(prepared, Arc::clone(&record));
        Ok(Pending(record))
    }

    fn prepare(
        &self,
        mirror: &Arc<DeviceMirror>,
        code: &Code,
        value: &[u8],
        params: &[ParamDesc],
        grid: Option<[u32; 3]>,
        bound: &[Bound<'_>],
    ) -> Result<Prepared, Error> {
        let name = code.name;
        if value.len() > MOST_VALUE {
            return Err(Error::Arguments {
                kernel: name,
                what: format!(
                    "a plain value of {} bytes, of at most {MOST_VALUE}; hand it over as a buffer, to be read whole",
                    value.len()
                ),
            });
        }
        let misfit = |what: String| Error::Arguments { kernel: name, what };
        let mut touches = SmallVec::new();
        let mut counted: Option<(usize, u64)> = None;
        for (index, (p, b)) in params.iter().zip(bound).enumerate() {
            if !self.same(&b.core.rt) {
                return Err(Error::OtherRuntime { kernel: name, index });
            }
            let bytes = &b.core.bytes;
            let len = (bytes.end - bytes.start) / p.elem.max(1);
            if len == 0 {
                return Err(misfit(format!("argument {index} is empty")));
            }
            if let Some(n) = p.mapping.groups(len) {
                match counted {
                    Some((first, m)) if m != n => {
                        return Err(misfit(format!(
                            "argument {index} ({len} elements) makes {n} groups, argument {first} makes {m}: their lengths do not fit"
                        )));
                    }
                    _ => counted = Some((index, n)),
                }
            }
            let aligned = mirror.alignment(&b.core.seg);
            if p.align > aligned {
                return Err(misfit(format!(
                    "argument {index} has elements aligned to {} bytes, and {} has addresses for it that are aligned to {aligned}; align \
                     them to less, or make the allocation shorter",
                    p.align,
                    mirror.device().info().id
                )));
            }
            if self.0.space.mechanism() == Mechanism::None {
                let (extent, grain) = (&b.core.seg.extent, mirror.caps().grain);
                if !extent.has_whole_grains(bytes, grain) {
                    return Err(Error::Unaligned { start: bytes.start, end: bytes.end, len: extent.used(), grain });
                }
            }
            touches.push(Touch { seg: Arc::clone(&b.core.seg), bytes: bytes.clone(), access: p.access });
        }
        if let (Some(grid), Some((first, n))) = (grid, counted)
            && grid::groups(grid) != Some(n)
        {
            return Err(misfit(format!("a grid of {grid:?} groups was asked for, but argument {first} makes {n}")));
        }
        let (grid, groups) = grid::of(grid, counted.map(|(_, n)| n)).map_err(misfit)?;
        let loaded = mirror.load(code)?;
        mirror.device().fits(loaded.id, grid).map_err(|e| Error::device(mirror.device(), e))?;
        Ok(Prepared {
            kernel: loaded,
            value: SmallVec::from_slice(value),
            grid,
            groups,
            params: SmallVec::from_slice(params),
            touches,
        })
    }
}

/// Whether it conflicts with a launch on another device: order between devices is the scheduler's.
fn used_elsewhere(t: &Touch, slot: usize) -> bool {
    // Mostly there is no other device. The counts are raised before uses are listed, and lowered after.
    let rec = t.seg.rec();
    let mut others = rec.devices().filter(|d| *d != slot && rec.view[*d].active.load(Ordering::Acquire) > 0);
    others.next().is_some() && t.seg.uses.lock().overlapping(Of::Others(slot), &t.bytes, t.access.writes()).next().is_some()
}

/// Whether it reads what a failed launch would have written: the scheduler refuses it.
fn is_tainted(t: &Touch) -> bool {
    // A taint keeps the gate up.
    t.access.reads() && !t.seg.rec().gate.is_readable() && t.seg.has_taints() && t.seg.tainted(&t.bytes).is_some()
}

/// Whether a launch that found no room for everything may run all the same.
pub(crate) fn may_fault(mirror: &DeviceMirror) -> bool {
    mirror.caps().absent == Absent::Faults
}

/// The access for which pages that a launch replaces only in part have to be populated.
pub(crate) fn at_edges(access: Access) -> Access {
    if access == Access::Write { Access::ReadWrite } else { access }
}
