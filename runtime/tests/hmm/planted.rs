//! Negative controls: for each planted defect a test of the suite, by name, that fails with it.

use sterna::hmm::planted;

use crate::kinds;
use crate::runner::{self, PLANT};
use crate::support::available;
use crate::table::Cell;

/// A defect, and the test that catches it.
const DEFECTS: &[(&str, &str)] = &[
    ("NO_RETRY_CHECK", "blind.retry_check"),
    ("CALLBACK_RETURNS_EARLY", "blind.callbacks_come_first"),
    ("MISSING_FLUSH", "blind.stale_entry"),
    ("FREED_TWICE", "hmm.migrate_release"),
    ("REUSED_BEFORE_ITS_POINT", "blind.late_copies"),
    ("REPLICA_KEPT_AT_UPGRADE", "blind.write_beside_a_replica"),
    ("DIRTY_LOST_ON_FAILURE", "blind.failed_copies"),
    ("UNMAP_TAKES_THE_BLOCK", "hmm.migrate_partial_unmap_fault"),
    ("REMAP_LEAVES_OLD", "hmm.migrate_remap_fault"),
    ("EXCLUSIVE_KEPT", "hmm.exclusive"),
    ("PROTECTION_NOT_ASKED", "hmm.anon_write_prot"),
    ("FORK_WITHOUT_HOME", "hmm.anon_write_child"),
    ("PINS_IGNORED", "blind.pinned_pages_stay"),
    ("FOREIGN_STOLEN", "hmm2.migrate_mixed"),
    ("FRAMES_NOT_HIDDEN", "coherent.another_device_takes_it"),
    ("FRAMES_LEFT_MAPPED", "coherent.frames_are_used_again"),
    ("LONG_PIN_IN_PLACE", "hmm.hmm_gup_test"),
];

/// Switches on what the environment names. Without the checks of the books: what a defect does to a program has to be seen.
pub(crate) fn plant() {
    if let Some(name) = std::env::var(PLANT).ok().filter(|n| !n.is_empty()) {
        let defect = planted::by_name(&name).expect("a planted defect");
        planted::UNCHECKED.store(true, std::sync::atomic::Ordering::SeqCst);
        defect.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

/// Fails if a test of the suite does not see, under each mechanism, the defect that it is there to see.
#[test]
fn every_defect_is_caught_by_name() {
    if runner::is_child() {
        return;
    }
    // The defects are the engine's, and these devices need no driver.
    let configs: Vec<_> = kinds::ALL.iter().filter(|c| c.is_cpu()).collect();
    let mut unseen = Vec::new();
    for m in runner::mechanisms().into_iter().filter(|m| available(*m)) {
        for (defect, test) in DEFECTS {
            assert!(planted::by_name(defect).is_some(), "{defect} is not planted anywhere");
            let cells = runner::mechanism(m, &configs, &format!("={test}"), Some(defect));
            let caught = cells.iter().filter(|c| matches!(c, Cell::Fail(_))).count();
            let why = cells.iter().find_map(|c| if let Cell::Fail(why) = c { Some(why.as_str()) } else { None });
            runner::say(&format!("{m}: {defect}: {test}: {caught} of {} cells: {}\n", cells.len(), why.unwrap_or("unseen")));
            if caught == 0 {
                unseen.push(format!("{defect} under {m}"));
            }
        }
    }
    assert!(unseen.is_empty(), "defects that no test has seen: {unseen:?}");
}
