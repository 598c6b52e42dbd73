//! The threads that read userfaultfd's messages.
//!
//! One descriptor, a thread a processor up to four, each on its own processor where there are that few: a fault is then served
//! on the processor that took it, which costs 3 µs; handing it to a sleeping processor costs 15 to 65 µs on a virtual machine.
//! A message wakes every reader, of which one gets it; four bounds that. With more processors the threads are left to the
//! scheduler.

use sterna_hal::Access;

use super::super::os::{self, uffd::Message};
use super::super::space::Space;
use super::fault::{Served, serve};
use crate::Error;

const MOST: usize = 4;

/// Starts the readers; one alone does as well, if slower.
pub(super) fn start(space: &'static Space) -> Result<(), Error> {
    let cpus = allowed_cpus();
    for i in 0..cpus.len().clamp(1, MOST) {
        let pin = (cpus.len() <= MOST).then(|| cpus[i]);
        let started = os::spawn(&format!("sterna-fault{i}"), move || {
            if let Some(cpu) = pin {
                stay_on(cpu);
            }
            run(space);
        });
        match started {
            Ok(_) => {}
            Err(_) if i > 0 => break,
            Err(e) => return Err(Error::System(e)),
        }
    }
    Ok(())
}

fn run(space: &'static Space) {
    os::leave_signals_to_the_program();
    let _or_die = os::OrDie;
    let Some(uffd) = space.host.uffd() else { return };
    let mut messages = [Message { at: 0, store: false }; 16];
    loop {
        match uffd.read(&mut messages) {
            Ok(n) => {
                for m in &messages[..n] {
                    match serve(space, m.at, if m.store { Access::ReadWrite } else { Access::Read }) {
                        // Parked: whoever ends the wait wakes the thread.
                        Served::Mapped | Served::Parked(..) => {}
                        Served::Foreign => uffd.wake(m.at, 4096),
                    }
                }
            }
            // The program closed our descriptor. Its threads would hang at their next fault without a word.
            Err(_) => os::die("sterna: reading host faults failed; was the userfaultfd closed by the program?\n"),
        }
    }
}

fn allowed_cpus() -> Vec<usize> {
    // SAFETY: plain old data; the kernel fills as much as said.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return vec![0];
        }
        (0..libc::CPU_SETSIZE as usize).filter(|c| libc::CPU_ISSET(*c, &set)).collect()
    }
}

/// Keeps this thread on one processor, where possible.
fn stay_on(cpu: usize) {
    // SAFETY: plain old data, filled before use.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}
