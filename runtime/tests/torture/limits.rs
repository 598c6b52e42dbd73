//! The same while the surroundings become narrow: few descriptors, memory that is locked, and devices whose memory others take.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sterna::hal::{DevAddr, Device};

use crate::support::{child, seed, under_each};
use crate::workers::round;
use crate::{seconds, setting};

const NARROW: &str = "STERNA_TORTURE_NARROW";
/// Those of the test itself, of a round, of ten pipes, and of the files that come and go.
const DESCRIPTORS: u64 = 100;

/// Locks what there is and what will be, once touched; says whether this user may.
fn lock_memory() -> bool {
    const MCL_ONFAULT: i32 = 4;
    // SAFETY: no memory is passed.
    unsafe { libc::geteuid() == 0 && libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | MCL_ONFAULT) == 0 }
}

fn few_descriptors() {
    let few = libc::rlimit { rlim_cur: DESCRIPTORS, rlim_max: DESCRIPTORS };
    // SAFETY: reads the limit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &few) }, 0);
}

/// Takes a device's memory but for the least that it needs, and gives it back, again and again.
fn take_and_give(device: &dyn Device, over: &AtomicBool) {
    let caps = device.caps();
    let least = (2 * u64::from(caps.min_frames) * caps.grain).max(1 << 20);
    while !over.load(Ordering::Relaxed) {
        let mut taken = Vec::new();
        let mut want = (device.memory().budget.saturating_sub(least) / caps.grain) as u32;
        while want > 0 && device.alloc(DevAddr(0), want, &mut taken).is_err() {
            want /= 2;
        }
        std::thread::sleep(Duration::from_millis(20));
        // SAFETY: allocated above, and used by nobody.
        unsafe { device.free(&taken) };
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Fails if something is lost, fails or hangs for want of descriptors, since memory was locked half-way, or while a device's memory
/// comes and goes.
#[test]
fn nothing_is_lost_in_narrow_surroundings() {
    let name = "limits::nothing_is_lost_in_narrow_surroundings";
    let time = seconds() / 6;
    let kinds = ["descriptors", "locked", "memory"];
    under_each(name, 3 * (time + Duration::from_secs(30)), |m| {
        let Ok(narrow) = std::env::var(NARROW) else {
            for kind in kinds {
                let o = child(name).env("STERNA_HOST_FAULTS", m.to_string()).env(NARROW, kind).output().unwrap();
                let (out, err) = (String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr));
                print!("{out}");
                assert!(o.status.success() && out.contains("1 passed"), "{kind} under {m}: {}\n{err}", o.status);
            }
            return;
        };
        let seed = seed();
        let n = seed as usize;
        let setting = setting(if narrow == "memory" { [0, 1, 3, 5, 7][n % 5] } else { n });
        println!("{narrow}, {m}, STERNA_SEED={seed}, {setting}");
        let (devices, over) = (setting.devices.each_ref().map(Arc::clone), AtomicBool::new(false));
        if narrow == "descriptors" {
            few_descriptors();
        }
        let tally = std::thread::scope(|s| {
            match narrow.as_str() {
                "locked" => drop(s.spawn(move || {
                    std::thread::sleep(time / 2);
                    if !lock_memory() {
                        println!("SKIP locked memory: this user may not lock as much");
                    }
                })),
                "memory" => devices.iter().for_each(|d| drop(s.spawn(|| take_and_give(&**d, &over)))),
                _ => {}
            }
            let tally = round(m, setting, time, seed);
            over.store(true, Ordering::Relaxed);
            tally
        });
        println!("{tally}");
        assert_eq!(tally.lost, 0, "{tally}");
        assert!(tally.increments > 0 && tally.launches > 0, "somebody did nothing: {tally}");
    });
}
