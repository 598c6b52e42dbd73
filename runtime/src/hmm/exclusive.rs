//! Pages that one device has to itself, for atomic operations on them (`make_device_exclusive`).
//!
//! **Guarantee.** While a page is in a device's `atomic` mask no other device has an entry for it, and the host's next touch is
//! noticed. Whatever takes the device's entry away, and nothing else, ends that: a touch of the host, another device's access or
//! request, a protection, an unmapping, a move.
//!
//! Where entries may name host storage the bytes stay there, and the host's view of them is revoked as for a move; elsewhere the
//! page moves to the device, whose atomic operations it then is the only place of.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use sterna_hal::{Access, Edit, HostAt, Target};

use super::addr::{BlockId, Mask, PAGES_PER_BLOCK, Pages, Span, runs_of};
use super::lease::Lease;
use super::lock::Free;
use super::migrate::{self, Home, Want};
use super::mirror::{Action, DeviceMirror};
use super::pin::{Keeper, PinKind};
use super::prot;
use super::range::populate_within;
use super::segment::Segment;
use crate::Error;
use crate::policy::Place;
use crate::stats::Cause;

/// How long others may take the pages away again before that is an error.
const BUDGET: Duration = Duration::from_millis(1000);

const SHORT: Keeper = Keeper::Pin(PinKind::Short);

/// Gives `pages` of `seg` to a device, block by block.
pub(crate) fn give_exclusive(
    free: &mut Free,
    mirror: &Arc<DeviceMirror>,
    seg: &Arc<Segment>,
    pages: &Pages,
) -> Result<(), Error> {
    for (id, mask) in pages.blocks() {
        let mut start = Instant::now();
        let first = id.first_page().0;
        let part = |mask: Mask| -> Vec<Pages> {
            mask.runs().map(|r| Pages(first + r.start as u64..first + r.end as u64)).collect()
        };
        while !held(free, mirror, seg, id).covers(mask) {
            let mut kept = None;
            for run in part(mask) {
                prot::allowed(free, seg, &run, Access::ReadWrite)?;
                let by = if mirror.may_alias() {
                    give_at_home(free, mirror, seg, &run)?
                } else {
                    moved(free, mirror, seg, &run)?
                };
                kept = by.or(kept);
            }
            match kept {
                // It ends by itself, however long it runs.
                Some(Keeper::Launch) => {
                    migrate::wait_for_borders(free, seg, &Pages(first..first + PAGES_PER_BLOCK as u64), None);
                    start = Instant::now();
                }
                Some(Keeper::Pin(_)) if start.elapsed() > BUDGET => return Err(Error::Pinned),
                Some(Keeper::Pin(_)) => std::thread::sleep(Duration::from_micros(100)),
                None if start.elapsed() > BUDGET && !held(free, mirror, seg, id).covers(mask) => {
                    return Err(Error::Busy { budget: BUDGET });
                }
                None => {}
            }
        }
    }
    Ok(())
}

fn held(free: &mut Free, mirror: &DeviceMirror, seg: &Segment, id: BlockId) -> Mask {
    seg.claim(id).lock(free).dev[mirror.slot()].atomic
}

/// The page moves to the device. Says whose short pin was in the way.
fn moved(free: &mut Free, mirror: &Arc<DeviceMirror>, seg: &Arc<Segment>, run: &Pages) -> Result<Option<Keeper>, Error> {
    let want = Want { access: Access::ReadWrite, rank: seg.space().tick(), cause: Cause::Mirror, own: true };
    if populate_within(free, mirror, seg, run, Place::Migrate, want, Some(BUDGET))?.full {
        return Err(mirror.exhausted(run.bytes()));
    }
    let space = seg.space();
    for (id, mask) in run.blocks() {
        let lease = Lease::take(free, seg, id, mask);
        if space.block(id).lock(free).held.meets(mask) {
            return Ok(Some(SHORT));
        }
        // The host's next touch has to be noticed.
        space.host.hide(space, free, &[Span { block: id, mask: lease.span.mask }])?;
        let mut body = space.block(id).lock(free);
        let mine = body.dev[mirror.slot()].owned() & mask;
        body.have_alone(mirror.slot(), mine);
        drop(body);
        drop(lease);
    }
    Ok(None)
}

/// The page stays in the host's storage. `run` lies in one block. Says who was in the way and will go.
fn give_at_home(
    free: &mut Free,
    mirror: &Arc<DeviceMirror>,
    seg: &Arc<Segment>,
    run: &Pages,
) -> Result<Option<Keeper>, Error> {
    let (space, slot) = (seg.space(), mirror.slot());
    let (_seat, view) = mirror.seat(free, seg, run, 0)?;
    migrate::bring_home(free, seg, run, Home { map: false, ..Home::EXCLUSIVE }, Cause::Mirror)?.complete(seg, run)?;
    for (id, mask) in run.blocks() {
        let lease = Lease::take(free, seg, id, mask);
        // The lease is for whole grains of every device; entries are for this one's, where it has addresses.
        let mask = mask.widened(mirror.rec().pages_per_grain());
        {
            let body = space.block(id).lock(free);
            if body.pinned.meets(mask) {
                return Err(Error::Pinned);
            }
            if body.bordered.meets(mask) {
                return Ok(Some(Keeper::Launch));
            }
            if body.held.meets(mask) {
                return Ok(Some(SHORT));
            }
            if body.denied(Access::ReadWrite).meets(mask) || (body.gone | body.replicated() | body.lost).meets(mask) {
                return Ok(None); // changed meanwhile: the caller looks again
            }
        }
        let spans = [Span { block: id, mask }];
        let runs = runs_of(&spans);
        for r in &runs {
            space.host.populate(space, free, seg, r)?;
        }
        let window = space.invalidate(free, Action::Exclusive { by: slot }, &runs)?;
        space.host.revoke(space, free, seg, &spans, &runs)?;
        let edits: SmallVec<[Edit; 4]> = space
            .block(id)
            .pieces(id, mask)
            .map(|(r, offset)| Edit {
                at: view.run(seg, id, &r),
                to: Target::Host(HostAt { region: mirror.region(), offset }),
                access: Access::ReadWrite,
            })
            .collect();
        mirror.install(free, &edits)?;
        let mut body = space.block(id).lock(free);
        body.admit(slot);
        mirror.change(seg, id, &mut body, |body| body.share_alone(slot, mask));
        debug_assert_eq!(body.check(space.host.faults()), Ok(()));
        drop(body);
        drop(window);
        drop(lease);
    }
    Ok(None)
}
