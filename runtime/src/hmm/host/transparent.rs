//! The threads that read userfaultfd's messages.
//!
//! One descriptor, a thread a processor up to four, each on its own processor where there are that few: a fault is then served
//! on the processor that took it, if the reader there gets its message. While one thread alone faults one reader alone reads, on the
//! processor of that thread (`duty`). With more processors the readers are left to the scheduler, and all of them read.

use sterna_hal::Access;

use super::super::os::{
    self,
    processors::{Processors, Whereabouts},
    uffd::{Message, Uffd},
};
use super::super::space::Space;
use super::duty::{Duty, LOOK, MOST, Next};
use super::fault::{Served, serve};
use crate::Error;

/// Starts the readers; one alone does as well, if slower.
pub(super) fn start(space: &'static Space) -> Result<(), Error> {
    let cpus = Processors::allowed();
    let numbers = cpus.numbers();
    let of_processors = numbers.len() > 1 && numbers.len() <= MOST;
    let duty: &Duty = Box::leak(Box::new(Duty::new()));
    for i in 0..numbers.len().clamp(1, MOST) {
        let home = numbers.get(i).copied().filter(|_| of_processors);
        let reader = Reader { number: i as u32, duty, home, followed: None };
        match os::spawn(&format!("sterna-fault{i}"), move || reader.run(space)) {
            Ok(_) => {}
            Err(_) if i > 0 => break,
            Err(e) => return Err(Error::System(e)),
        }
    }
    Ok(())
}

struct Reader {
    number: u32,
    duty: &'static Duty,
    /// The processor that it stays on, where each has one of its own.
    home: Option<usize>,
    /// Whom it follows while one reads alone.
    followed: Option<Whereabouts>,
}

impl Reader {
    fn run(mut self, space: &'static Space) {
        os::leave_signals_to_the_program();
        let _or_die = os::OrDie;
        let Some(uffd) = space.host.uffd() else { return };
        if let Some(cpu) = self.home {
            Processors::one(cpu).keep_this_thread();
            self.duty.stays(self.number, cpu);
        }
        let mut messages = [Message { at: 0, store: false, thread: 0 }; 16];
        loop {
            if !self.duty.is_on(self.number) {
                self.followed = None;
                self.duty.rest(self.number);
            }
            // Whom nobody needs to follow it does not hold on to.
            if !uffd.await_messages(self.followed.as_ref().map(|_| LOOK)) {
                self.followed = None;
                continue;
            }
            match uffd.read(&mut messages) {
                Ok(n) => messages[..n].iter().for_each(|m| self.take(space, uffd, m)),
                // The program closed our descriptor. Its threads would hang at their next fault without a word.
                Err(_) => os::die("sterna: reading host faults failed; was the userfaultfd closed by the program?\n"),
            }
        }
    }

    fn take(&mut self, space: &'static Space, uffd: &Uffd, m: &Message) {
        if self.duty.note(m.thread) == Next::Look
            && self.home.is_some()
            && self.duty.hand_over(self.number, self.processor_of(m.thread))
        {
            // It faults again, and the reader there serves it.
            self.duty.stay_busy(|| uffd.wake(m.at, 4096));
            return;
        }
        match serve(space, m.at, if m.store { Access::ReadWrite } else { Access::Read }) {
            // Parked: whoever ends the wait wakes the thread.
            Served::Mapped | Served::Parked(..) => {}
            Served::Foreign => uffd.wake(m.at, 4096),
        }
        self.duty.served();
    }

    fn processor_of(&mut self, thread: u32) -> Option<usize> {
        if self.followed.as_ref().is_none_or(|f| f.thread() != thread) {
            self.followed = Whereabouts::of(thread);
        }
        self.followed.as_ref()?.processor()
    }
}
