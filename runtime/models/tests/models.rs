//! What holds in every order of the threads and of their memory; and that each planted defect is found.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use sterna_models::{Defect, Driver, Futex, Gate, Word};

/// Runs a model in every order with at most so many switches that were not asked for; says in how many orders.
fn holds_within(preemptions: usize, name: &str, model: impl Fn() + Sync + Send + 'static) {
    let orders = std::sync::Arc::new(AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&orders);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || {
        counted.fetch_add(1, Relaxed);
        model();
    });
    println!("{name}: holds in {} orders", orders.load(Relaxed));
}

fn holds(name: &str, model: impl Fn() + Sync + Send + 'static) {
    holds_within(3, name, model);
}

/// Fails unless some order breaks the model of this test; in a process of its own, since the checker may abort.
fn breaks(test: &str, name: &str, model: impl Fn() + Sync + Send + 'static) {
    const CHILD: &str = "STERNA_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return holds(name, model);
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let out = child.args([test, "--exact", "--nocapture"]).env(CHILD, "1").output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && !said.contains("holds in"), "{name} went unseen:\n{said}");
    let how = ["deadlock", "the entry is", "a failed launch", "Causality violation"]
        .into_iter()
        .find(|h| said.contains(h))
        .expect("fails as planted");
    println!("{name}: seen ({how} …)");
}

#[test]
fn the_lock_excludes_and_forgets_nobody() {
    holds_within(2, "lock, three threads", || {
        let shared = Arc::new((Futex::new(), UnsafeCell::new(0)));
        let add = |s: &(Futex, UnsafeCell<i32>)| {
            // SAFETY: under the lock; the checker says so if that is not so.
            s.0.with(|| s.1.with_mut(|v| unsafe { *v += 1 }));
        };
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || add(&shared))
            })
            .collect();
        add(&shared);
        threads.into_iter().for_each(|t| t.join().unwrap());
        // SAFETY: as above.
        shared.0.with(|| shared.1.with(|v| assert_eq!(unsafe { *v }, 3)));
    });
}

fn word(late: bool) {
    let w = Arc::new((Word::default(), UnsafeCell::new(0)));
    let sleeper = {
        let w = Arc::clone(&w);
        thread::spawn(move || {
            w.0.wait_beyond(0);
            // SAFETY: written before the word was changed.
            w.1.with(|v| assert_eq!(unsafe { *v }, 7));
        })
    };
    // SAFETY: nobody reads it before the word is changed.
    w.1.with_mut(|v| unsafe { *v = 7 });
    w.0.advance(late);
    sleeper.join().unwrap();
}

#[test]
fn a_sleeper_is_woken_and_sees_what_came_before() {
    holds("word", || word(false));
}

#[test]
fn a_waker_that_looks_for_sleepers_too_early_is_seen() {
    breaks("a_waker_that_looks_for_sleepers_too_early_is_seen", "look for sleepers before the change", || word(true));
}

fn driver(defect: Defect) {
    let d = Arc::new(Driver::new());
    let other = {
        let d = Arc::clone(&d);
        thread::spawn(move || d.change(1, defect))
    };
    d.populate(defect, 2);
    other.join().unwrap();
    let (entry, page) = d.entry_and_page();
    assert!(entry.is_none_or(|e| e == page), "the entry is {entry:?}, the page {page}");
}

#[test]
fn an_entry_is_never_out_of_date() {
    holds("notifier, a reader and a change", || driver(Defect::None));
}

#[test]
fn two_drivers_beside_one_change() {
    holds_within(2, "notifier, two readers and a change", || {
        let d = Arc::new(Driver::new());
        let other = {
            let d = Arc::clone(&d);
            thread::spawn(move || d.populate(Defect::None, 1))
        };
        let third = {
            let d = Arc::clone(&d);
            thread::spawn(move || d.change(1, Defect::None))
        };
        d.populate(Defect::None, 1);
        other.join().unwrap();
        third.join().unwrap();
        let (entry, page) = d.entry_and_page();
        assert!(entry.is_none_or(|e| e == page), "the entry is {entry:?}, the page {page}");
    });
}

#[test]
fn an_installation_without_the_retry_check_is_seen() {
    breaks("an_installation_without_the_retry_check_is_seen", "no retry check", || driver(Defect::NoRetry));
}

#[test]
fn an_update_before_the_window_is_seen() {
    breaks("an_update_before_the_window_is_seen", "update before the window is open", || driver(Defect::UpdateBeforeOpen));
}

/// A device reads the page through its entry while the change is under way.
fn beside_a_device(defect: Defect) {
    let d = Arc::new(Driver::new());
    d.populate(Defect::None, 1);
    let other = {
        let d = Arc::clone(&d);
        thread::spawn(move || d.change(1, defect))
    };
    let (entry, page) = d.entry_and_page();
    assert!(entry.is_none_or(|e| e == page), "the entry is {entry:?}, the page {page}");
    other.join().unwrap();
}

#[test]
fn a_device_never_reads_a_page_that_has_gone() {
    holds("notifier, a device beside a change", || beside_a_device(Defect::None));
}

#[test]
fn a_change_before_the_update_is_seen() {
    breaks("a_change_before_the_update_is_seen", "change before update", || beside_a_device(Defect::ChangeBeforeUpdate));
}

/// A launch ends on one thread while another asks the gate; `early` plants the defect.
fn gate(failed: bool, early: bool) {
    let g = Arc::new((Gate::default(), UnsafeCell::new(0)));
    g.0.launch(true);
    let device = {
        let g = Arc::clone(&g);
        thread::spawn(move || {
            // SAFETY: the launch is unfinished: nobody else touches it.
            g.1.with_mut(|v| unsafe { *v = 7 });
            g.0.retire(true, failed, early);
        })
    };
    if g.0.is_open(false) {
        assert!(!failed, "a failed launch was not noticed");
        // SAFETY: the gate is open for reading; the checker says so if that does not hold.
        g.1.with(|v| assert_eq!(unsafe { *v }, 7));
    }
    device.join().unwrap();
    assert_eq!(g.0.is_open(false), !failed);
}

#[test]
fn an_open_gate_shows_what_the_launch_wrote() {
    holds("gate, a launch that writes", || gate(false, false));
}

#[test]
fn a_failed_launch_keeps_the_gate_shut() {
    holds("gate, a launch that fails", || gate(true, false));
}

#[test]
fn a_gate_that_opens_before_the_failure_is_written_down_is_seen() {
    breaks(
        "a_gate_that_opens_before_the_failure_is_written_down_is_seen",
        "the gate opens before the failure is written down",
        || gate(true, true),
    );
}

/// A launch that reads ends on one thread; another stores when the gate lets it. `asked` is what it asks: to read is the defect.
fn store_after_readers(asked_to_write: bool) {
    let g = Arc::new((Gate::default(), UnsafeCell::new(0)));
    g.0.launch(false);
    let device = {
        let g = Arc::clone(&g);
        thread::spawn(move || {
            // SAFETY: the launch is unfinished: nobody stores.
            g.1.with(|v| assert_eq!(unsafe { *v }, 0));
            g.0.retire(false, false, false);
        })
    };
    if g.0.is_open(asked_to_write) {
        // SAFETY: the gate is open for writing; the checker says so if that does not hold.
        g.1.with_mut(|v| unsafe { *v = 1 });
    }
    device.join().unwrap();
}

#[test]
fn a_store_comes_after_what_launches_read() {
    holds("gate, a launch that reads", || store_after_readers(true));
}

#[test]
fn a_store_that_asks_for_writers_only_is_seen() {
    breaks("a_store_that_asks_for_writers_only_is_seen", "a store asks for writers only", || store_after_readers(false));
}

/// Mode `none`: bytes leave and come home on several threads at once; each kind counts once.
#[test]
fn bytes_that_are_away_count_once() {
    holds_within(2, "gate, bytes away and home", || {
        let g = Arc::new(Gate::default());
        let leave: Vec<_> = [true, false]
            .into_iter()
            .map(|writes| {
                let g = Arc::clone(&g);
                thread::spawn(move || g.away(writes))
            })
            .collect();
        g.all_home(false);
        leave.into_iter().for_each(|t| t.join().unwrap());
        assert!(!g.is_open(true), "copies are away");
        g.all_home(true);
        assert!(g.is_open(false) && g.is_open(true), "everything is home");
    });
}
