//! Launches of a device's mirror: whether one may run now, its submission, and those on their way.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;
use sterna_hal::kernel::{Code, KernelId, ParamDesc};
use sterna_hal::{Access, Arg, DevRange, DeviceError, Groups, Launch, Point};

use super::super::addr::Span;
use super::super::hold;
use super::super::inflight::{InFlight, Touch};
use super::super::segment::Segment;
use super::{DeviceMirror, Loaded};
use crate::Error;

/// Launches that a device has at once, but for those that were submitted at the same moment; the others wait with the scheduler.
const MOST_AT_ONCE: usize = 1024;

/// Who submits a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) enum By {
    /// The thread that launches; the launch is recorded with it.
    Caller,
    /// The scheduler: the segments' counts of what is queued are lowered with it.
    Scheduler,
}

/// A launch before the device's addresses are known, which may change until it is submitted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    pub(crate) kernel: KernelId,
    pub(crate) grid: [u32; 3],
    pub(crate) value: &'a [u8],
    pub(crate) params: &'a [ParamDesc],
    /// An argument a parameter.
    pub(crate) touches: &'a [Touch],
}

/// Why a launch was not submitted.
#[derive(Debug)]
pub(crate) enum NotYet {
    /// Something it needs is not resident, or some entry is stale.
    Populate,
    /// A fault waits for a moment without launches; see [`hold`].
    Held,
    /// A long pin keeps at home what the device cannot use there.
    Pinned,
    /// The device refused it.
    Failed(DeviceError),
}

impl DeviceMirror {
    /// Whether a kernel may touch `bytes` of `seg` without a fault or a change of state. Under the driver lock.
    pub(crate) fn ready(&self, seg: &Segment, bytes: &Range<u64>, access: Access) -> bool {
        let rec = seg.rec();
        let view = &rec.view[self.slot];
        let word = if access.writes() { &view.ready_write } else { &view.ready_read };
        if word.load(Ordering::Relaxed) == seg.blocks() {
            return true;
        }
        if bytes.start == 0 && bytes.end == seg.bytes() {
            return false;
        }
        seg.pages_of(bytes).blocks().all(|(id, mask)| {
            let block = self.space.block(id);
            // A part of a block may be ready when the rest is elsewhere.
            block.segment().is_some() && block.is_ready(self.slot, mask, access.writes())
        })
    }

    /// Submits a launch of `groups` if the driver lock shows that everything it `needs`, a part of each argument, is ready, or, with
    /// `faults`, that the device may fault the rest in. The check and the submission are one step under that lock, as every
    /// revocation is.
    pub(crate) fn try_submit(
        &self,
        call: Call<'_>,
        (groups, needs): (Groups<'_>, &[Touch]),
        record: &Arc<InFlight>,
        faults: bool,
        by: By,
    ) -> Result<(), NotYet> {
        let mut args: SmallVec<[Arg<'_>; 8]> = SmallVec::new();
        args.push(Arg::Plain(call.value));
        let _driver = self.rec().lock.hold();
        for ((t, need), param) in call.touches.iter().zip(needs).zip(call.params) {
            // Without addresses nothing of it is there.
            let Some(view) = t.seg.view(self.slot).filter(|v| v.covers(&need.bytes)) else { return Err(NotYet::Populate) };
            let at = DevRange { at: view.of(t.bytes.start), bytes: t.bytes.end - t.bytes.start };
            args.push(Arg::Range { at, elem: param.elem, access: t.access, mapping: param.mapping });
            let ok = if faults {
                // What it has copies of does not come by a fault.
                let there = |s: &Span| self.space.block(s.block).is_ready(self.slot, s.mask, true);
                t.seg.rec().view[self.slot].stale.load(Ordering::Acquire) == 0 && record.own(&t.seg).iter().all(there)
            } else {
                self.ready(&t.seg, &need.bytes, t.access)
            };
            if !ok {
                return Err(NotYet::Populate);
            }
            if hold::held(&t.seg, self.slot) {
                return Err(NotYet::Held);
            }
            if !self.may_alias() && record.is_barred(&t.seg, &need.bytes) {
                return Err(NotYet::Pinned);
            }
        }
        match by {
            By::Caller => record.record(),
            // From here on a launch that finds everything resident comes behind this one, by the driver lock. Lowered before
            // the device can finish it, so that whoever waits for it and launches again finds the way free.
            By::Scheduler => call.touches.iter().for_each(|t| t.seg.unqueue()),
        }
        let launch = Launch { kernel: call.kernel, grid: call.grid, groups, args: &args };
        // SAFETY: the arguments were checked against the kernel; their segments live until the launch retires; the gate keeps
        // the host's references away, order between launches keeps other devices away.
        match unsafe { self.device.submit(&launch, &[]) } {
            Ok(ticket) => {
                record.submitted(ticket);
                let mut live = self.live.lock();
                live.push_back(Arc::clone(record));
                self.under_way.store(live.len(), Ordering::Relaxed);
                Ok(())
            }
            Err(e) => {
                if let By::Scheduler = by {
                    call.touches.iter().for_each(|t| t.seg.queue());
                }
                Err(NotYet::Failed(e))
            }
        }
    }

    /// The kernel on this device, which stays loaded while somebody holds it.
    pub(crate) fn load(&self, code: &Code) -> Result<Arc<Loaded>, Error> {
        self.kernels.load(&**self.device, code).map_err(|e| self.noticed(e))
    }

    /// Retires launches that have ended, oldest first. Costs one look when none has.
    pub(crate) fn reap(&self) {
        if self.under_way.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut front = self.oldest();
        while let Some(ended) = front.filter(InFlight::poll) {
            front = self.retired(&ended);
        }
    }

    /// Retires a launch that the device has finished with, behind those before it: a launch asks them how they ended, and a long chain
    /// of them must not become a deep recursion.
    pub(crate) fn reap_up_to(&self, launch: &Arc<InFlight>) {
        let oldest = self.live.lock().front().is_some_and(|l| Arc::ptr_eq(l, launch));
        if !oldest {
            self.reap();
        }
        if launch.poll() {
            self.retired(launch);
        }
    }

    /// Takes a launch that has retired off the list, which it may have left. Gives the oldest that is on it now.
    fn retired(&self, launch: &Arc<InFlight>) -> Option<Arc<InFlight>> {
        let mut live = self.live.lock();
        if live.front().is_some_and(|l| Arc::ptr_eq(l, launch)) {
            live.pop_front();
            self.under_way.store(live.len(), Ordering::Relaxed);
        }
        live.front().cloned()
    }

    /// Launches submitted and not retired, oldest first.
    pub(crate) fn live(&self) -> Vec<Arc<InFlight>> {
        self.live.lock().iter().cloned().collect()
    }

    /// Where the device has as many launches as it gets at once: the one with whose end there is room for many again. A device keeps a
    /// command buffer for each, and the system what a flood of them took.
    pub(crate) fn crowded(&self) -> Option<Arc<InFlight>> {
        if self.under_way.load(Ordering::Relaxed) < MOST_AT_ONCE {
            return None;
        }
        let live = self.live.lock();
        if live.len() < MOST_AT_ONCE { None } else { Some(Arc::clone(&live[live.len() - MOST_AT_ONCE / 2])) }
    }

    /// The oldest launch that has not retired.
    pub(crate) fn oldest(&self) -> Option<Arc<InFlight>> {
        self.live.lock().front().cloned()
    }

    /// The launch that is running, as far as is known: the oldest whose point is not reached.
    pub(crate) fn running(&self) -> Option<Point> {
        self.live.lock().iter().filter_map(|l| l.point()).find(|p| !self.device.reached(*p))
    }

    /// Whether a launch that [`running`](Self::running) named has ended; where it named none, whether any runs now.
    pub(crate) fn is_over(&self, launch: Option<Point>) -> bool {
        launch.map_or_else(|| self.is_idle(), |p| self.device.reached(p))
    }

    /// Whether no launch is running. May be called from the threads that serve faults.
    pub(crate) fn is_idle(&self) -> bool {
        self.live.lock().iter().all(|l| l.is_finished())
    }
}
