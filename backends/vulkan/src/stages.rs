//! The ring of stages: how bytes pass through them.
//!
//! **Guarantee:** a batch has arrived when the last stage with something of it has been emptied; batches arrive in the order in which
//! they were begun.
//!
//! **How:** what is imported is recorded as it is; the rest of the runs is cut into pieces that fit a stage, and as many as fit are one
//! submission. The thread goes on to the next stage, of this batch or of the one behind it, while the device works on those before.
//! A stage is emptied when it is needed again, or when there is nothing else to do.
//!
//! **States of the ring:** from `next` on the free stages come first, or the oldest in flight if there is none; the others follow in
//! the order of their values. No locks: one thread has it.

use std::ptr::NonNull;
use std::sync::Arc;

use sterna_hal::{DeviceError, HostAt};
use sterna_host::copy::Owner;
use sterna_host::sys::to_usize;

use crate::imports::{Imports, Reach};
use crate::pool::Pool;
use crate::raw::Raw;
use crate::signals::Semaphore;
use crate::stage::{End, Run, Stage};

/// Bytes of a stage, and how many there are: enough that the host copies while the device does.
const STAGE: u64 = 4 << 20;
const STAGES: usize = 4;

#[derive(Debug)]
pub(crate) struct Stages {
    list: Vec<Stage>,
    next: usize,
    semaphore: Semaphore,
    issued: u64,
    imports: Option<Arc<Imports>>,
    /// Who is told of batches that have arrived.
    owner: Option<Arc<dyn Owner>>,
    raw: Arc<Raw>,
}

impl Stages {
    pub(crate) fn new(
        raw: &Arc<Raw>,
        pool: &Arc<Pool>,
        imports: Option<Arc<Imports>>,
        owner: Option<Arc<dyn Owner>>,
    ) -> Result<Self, DeviceError> {
        let semaphore = Semaphore::new(raw).map_err(DeviceError::from)?;
        let list = (0..STAGES).map(|_| Stage::new(raw, pool, STAGE)).collect::<Result<_, _>>()?;
        Ok(Self { list, next: 0, semaphore, issued: 0, imports, owner, raw: Arc::clone(raw) })
    }

    /// Hands all of a batch's runs to the device, and waits only for stages that it needs again.
    pub(crate) fn carry(&mut self, runs: &[Run], batch: u64) -> Result<(), DeviceError> {
        for run in runs {
            let mut done = 0;
            while done < run.bytes {
                done += self.piece(run, done)?;
            }
        }
        self.submit()?;
        let last = &mut self.list[(self.next + STAGES - 1) % STAGES];
        if last.value > 0 {
            last.ends = batch;
        } else {
            self.arrived(batch);
        }
        Ok(())
    }

    fn arrived(&self, batch: u64) {
        if let Some(owner) = &self.owner {
            owner.copied(batch);
        }
    }

    fn oldest(&self) -> Option<usize> {
        (0..STAGES).map(|k| (self.next + k) % STAGES).find(|i| self.list[*i].value > 0)
    }

    /// Whether something has been handed over that has not arrived.
    pub(crate) fn under_way(&self) -> bool {
        self.oldest().is_some()
    }

    /// Empties the stage that has been in flight longest.
    pub(crate) fn empty_oldest_stage(&mut self) -> Result<(), DeviceError> {
        self.oldest().map_or(Ok(()), |i| self.empty_stage(i))
    }

    /// Waits until everything has arrived.
    pub(crate) fn finish(&mut self) -> Result<(), DeviceError> {
        while self.under_way() {
            self.empty_oldest_stage()?;
        }
        Ok(())
    }

    /// Forgets what is under way, none of which will arrive. For a lost device.
    pub(crate) fn give_up(&mut self) {
        self.list.iter_mut().for_each(Stage::give_up);
    }

    /// Starts the copy of the run's bytes from `done` on, as many as go into the stage; says how many.
    fn piece(&mut self, run: &Run, done: u64) -> Result<u64, DeviceError> {
        let mut left = run.bytes - done;
        // SAFETY: inside the run's places, which the batch has to itself; here and below.
        let host = |p: &NonNull<u8>| unsafe { p.add(to_usize(done)) };
        match (&run.from, &run.to) {
            (End::Host(from, _), End::Host(to, _)) => {
                // SAFETY: as above; they do not overlap, by the contract of `copy`.
                unsafe { host(to).copy_from_nonoverlapping(host(from), to_usize(left)) };
                return Ok(left);
            }
            (End::Zero, End::Host(to, _)) => {
                // SAFETY: as above.
                unsafe { host(to).write_bytes(0, to_usize(left)) };
                return Ok(left);
            }
            (End::Device(a, x), End::Device(b, y)) => {
                self.begin()?;
                self.list[self.next].copy((a.raw, x + done), (b.raw, y + done), left);
                return Ok(left);
            }
            (End::Zero, End::Device(b, y)) if (y + done).is_multiple_of(4) && left >= 4 => {
                self.begin()?;
                let bytes = left & !3;
                let (cmd, to) = (self.list[self.next].cmd, b.raw);
                // SAFETY: as above; offset and length are multiples of 4.
                unsafe { self.raw.device.cmd_fill_buffer(cmd, to, y + done, bytes, 0) };
                return Ok(bytes);
            }
            (End::Host(_, at), End::Device(..)) | (End::Device(..), End::Host(_, at)) => {
                let at = HostAt { offset: at.offset + done, ..*at };
                match self.imports.as_ref().map(|i| i.reach(at, left)) {
                    Some(Reach::Imported(import, into, bytes)) => {
                        self.begin()?;
                        self.list[self.next].import(run, done, (import, into), bytes);
                        return Ok(bytes);
                    }
                    Some(Reach::Staged(bytes)) => left = bytes,
                    None => {}
                }
            }
            _ => {}
        }
        self.begin()?;
        if self.list[self.next].used == STAGE {
            self.submit()?;
            self.begin()?;
        }
        let stage = &mut self.list[self.next];
        let zero_edge = |y: u64| 4 - (y + done) % 4;
        let bytes = match (&run.from, &run.to) {
            // The bytes before or behind whole words.
            (End::Zero, End::Device(_, y)) => left.min(zero_edge(*y)),
            _ => left.min(STAGE - stage.used),
        };
        let bytes = bytes.min(STAGE - stage.used);
        let at = stage.used;
        let mapped = stage.buffer.mapped.expect("stages are mapped");
        // SAFETY: inside the stage.
        let staged = unsafe { mapped.add(to_usize(at)) };
        let own = stage.buffer.raw;
        match (&run.from, &run.to) {
            (End::Host(from, _), End::Device(b, y)) => {
                // SAFETY: the stage is this thread's; the source is the batch's.
                unsafe { staged.copy_from_nonoverlapping(host(from), to_usize(bytes)) };
                stage.copy((own, at), (b.raw, y + done), bytes);
            }
            (End::Zero, End::Device(b, y)) => {
                // SAFETY: as above.
                unsafe { staged.write_bytes(0, to_usize(bytes)) };
                stage.copy((own, at), (b.raw, y + done), bytes);
            }
            (End::Device(a, x), End::Host(to, _)) => {
                stage.copy((a.raw, x + done), (own, at), bytes);
                stage.outs.push((at, host(to), bytes));
            }
            _ => unreachable!("the other pairs are above"),
        }
        stage.used += bytes;
        Ok(bytes)
    }

    /// Makes the next stage ready for recording, if it is not.
    fn begin(&mut self) -> Result<(), DeviceError> {
        if self.list[self.next].recorded {
            return Ok(());
        }
        self.empty_stage(self.next)?;
        self.list[self.next].begin()
    }

    /// Hands over what is recorded and goes on to the next stage.
    fn submit(&mut self) -> Result<(), DeviceError> {
        let stage = &mut self.list[self.next];
        if stage.recorded {
            self.issued += 1;
            stage.submit(self.semaphore.raw, self.issued)?;
            self.next = (self.next + 1) % STAGES;
        }
        Ok(())
    }

    /// Waits until the device has done with a stage, and empties it.
    fn empty_stage(&mut self, i: usize) -> Result<(), DeviceError> {
        let stage = &mut self.list[i];
        if stage.value > 0 {
            self.semaphore.wait(stage.value, u64::MAX)?;
            stage.empty();
            let ends = std::mem::take(&mut stage.ends);
            if ends > 0 {
                self.arrived(ends);
            }
        }
        Ok(())
    }
}
