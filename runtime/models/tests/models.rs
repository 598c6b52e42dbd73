//! What holds in every order of the threads and of their memory; and that each planted defect is found.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use sterna_models::{Defect, Driver, Futex, Word};

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
    let how = ["deadlock", "the entry is"].into_iter().find(|h| said.contains(h)).expect("fails as planted");
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
