//! System calls on shared memory whose pages are on a device: as they are where that works, through `host` and `host_mut`
//! everywhere, and with the documented error in mode `signal`.

mod support;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use sterna::hmm::{Action, Mirror, MirrorOps, Pages};
use sterna::kernel::{Group, Kernel, each_mut};
use sterna::{Mechanism, Runtime, Shared};
use support::{plain, under_each};

const LIMIT: Duration = Duration::from_secs(30);
const LEN: usize = 100_000;
/// The bytes that calls are about: neither end lies at the border of a page.
const FROM: usize = 5_000;
const TO: usize = 31_007;

fn value(i: usize) -> u8 {
    (i * 7 % 251) as u8
}

fn other(i: usize) -> u8 {
    !value(i)
}

fn write_values(g: Group, _: u32, y: &mut [u8]) {
    for (i, y) in y.iter_mut().enumerate() {
        *y = value(g.index() * 4096 + i);
    }
}

/// An allocation whose bytes a kernel wrote, and nobody has looked at since.
fn on_device(rt: &Runtime) -> Shared<u8> {
    let mut y = rt.shared::<u8>(LEN).unwrap();
    let kernel = Kernel::new("write_values", 0_u32, (each_mut(4096),), write_values);
    rt.launch(&kernel, (&mut y,)).unwrap().wait().unwrap();
    y
}

fn file() -> File {
    // SAFETY: a valid name; the descriptor is ours.
    unsafe {
        let fd = libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        File::from_raw_fd(fd)
    }
}

fn values() -> Vec<u8> {
    (FROM..TO).map(value).collect()
}

fn others() -> Vec<u8> {
    (FROM..TO).map(other).collect()
}

/// The result of a call in bytes, or the system's error.
fn told(n: isize) -> Result<usize, i32> {
    usize::try_from(n).map_err(|_| std::io::Error::last_os_error().raw_os_error().unwrap())
}

type Call = (&'static str, fn(*mut u8, usize) -> Result<usize, i32>);

/// A call that has the kernel read `n` bytes at `at`; checks what arrived.
fn check_arrived(mut f: File, n: Result<usize, i32>) -> Result<usize, i32> {
    if n.is_ok() {
        let mut got = Vec::new();
        f.seek(SeekFrom::Start(0)).unwrap();
        f.read_to_end(&mut got).unwrap();
        assert_eq!(got, values());
    }
    n
}

fn through_socket(n: usize, send: impl FnOnce(i32) -> isize) -> Result<usize, i32> {
    let (a, mut b) = UnixStream::pair().unwrap();
    let sent = told(send(a.as_raw_fd()));
    drop(a);
    let mut got = Vec::new();
    b.read_to_end(&mut got).unwrap();
    if sent == Ok(n) {
        assert_eq!(got, values());
    }
    sent
}

fn file_of_others() -> File {
    let mut f = file();
    f.write_all(&others()).unwrap();
    f.seek(SeekFrom::Start(0)).unwrap();
    f
}

fn vectors(at: *mut u8, n: usize) -> [libc::iovec; 3] {
    // Three parts; the middle one begins and ends inside a page.
    let part = |from: usize, to: usize| libc::iovec { iov_base: at.wrapping_add(from).cast(), iov_len: to - from };
    [part(0, 11), part(11, n / 2), part(n / 2, n)]
}

/// Calls that read the memory.
const READERS: [Call; 5] = [
    ("write", |at, n| {
        let f = file();
        // SAFETY: memory of the caller's, `n` bytes long; so in all of these.
        let r = told(unsafe { libc::write(f.as_raw_fd(), at.cast(), n) });
        check_arrived(f, r)
    }),
    ("pwrite", |at, n| {
        let f = file();
        // SAFETY: as above.
        let r = told(unsafe { libc::pwrite(f.as_raw_fd(), at.cast(), n, 0) });
        check_arrived(f, r)
    }),
    ("writev", |at, n| {
        let f = file();
        // SAFETY: as above.
        let r = told(unsafe { libc::writev(f.as_raw_fd(), vectors(at, n).as_ptr(), 3) });
        check_arrived(f, r)
    }),
    ("send", |at, n| {
        // SAFETY: as above.
        through_socket(n, |fd| unsafe { libc::send(fd, at.cast(), n, 0) })
    }),
    ("process_vm_readv", |at, n| {
        let mut got = vec![0_u8; n];
        let to = libc::iovec { iov_base: got.as_mut_ptr().cast(), iov_len: n };
        let from = libc::iovec { iov_base: at.cast(), iov_len: n };
        // SAFETY: as above; `got` is as long.
        let r = told(unsafe { libc::process_vm_readv(libc::getpid(), &to, 1, &from, 1, 0) });
        if r == Ok(n) {
            assert_eq!(got, values());
        }
        r
    }),
];

/// Calls that write the memory.
const WRITERS: [Call; 5] = [
    // SAFETY: memory of the caller's, `n` bytes long; so in all of these.
    ("read", |at, n| told(unsafe { libc::read(file_of_others().as_raw_fd(), at.cast(), n) })),
    // SAFETY: as above.
    ("pread", |at, n| told(unsafe { libc::pread(file_of_others().as_raw_fd(), at.cast(), n, 0) })),
    // SAFETY: as above.
    ("readv", |at, n| told(unsafe { libc::readv(file_of_others().as_raw_fd(), vectors(at, n).as_ptr(), 3) })),
    ("recv", |at, n| {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&others()).unwrap();
        // SAFETY: as above.
        told(unsafe { libc::recv(b.as_raw_fd(), at.cast(), n, libc::MSG_WAITALL) })
    }),
    ("process_vm_writev", |at, n| {
        let others = others();
        let from = libc::iovec { iov_base: others.as_ptr().cast_mut().cast(), iov_len: n };
        let to = libc::iovec { iov_base: at.cast(), iov_len: n };
        // SAFETY: as above.
        told(unsafe { libc::process_vm_writev(libc::getpid(), &from, 1, &to, 1, 0) })
    }),
];

/// Compares every byte: those of the call, and those beside it.
fn compare(y: &Shared<u8>, inside: fn(usize) -> u8, what: &str) {
    for (i, v) in y.iter().enumerate() {
        let expected = if (FROM..TO).contains(&i) { inside(i) } else { value(i) };
        assert_eq!(*v, expected, "byte {i} after {what}");
    }
}

/// Fails if a system call does not see the bytes that a device wrote, or what it writes does not stay.
#[test]
fn system_calls_on_pages_of_a_device() {
    under_each("system_calls_on_pages_of_a_device", LIMIT, |m| {
        if m != Mechanism::Transparent {
            return;
        }
        let rt = plain();
        for (calls, after) in [(READERS, value as fn(usize) -> u8), (WRITERS, other)] {
            for (name, call) in calls {
                let y = on_device(&rt);
                let at = y.as_host_ptr().cast_mut().wrapping_add(FROM);
                assert_eq!(call(at, TO - FROM), Ok(TO - FROM), "{name}");
                compare(&y, after, name);
            }
        }
    });
}

/// Fails if the standard library's file I/O does not work on slices of shared memory.
#[test]
fn files_are_read_and_written() {
    under_each("files_are_read_and_written", LIMIT, |m| {
        let rt = plain();
        let mut y = on_device(&rt);
        let mut f = file();
        if m == Mechanism::Transparent {
            f.write_all(&y[FROM..TO]).unwrap();
        } else {
            f.write_all(&y.host(FROM..TO).unwrap()).unwrap();
        }
        check_arrived(f, Ok(0)).unwrap();
        let mut y2 = on_device(&rt);
        if m == Mechanism::Transparent {
            file_of_others().read_exact(&mut y2[FROM..TO]).unwrap();
        } else {
            file_of_others().read_exact(&mut y2.host_mut(FROM..TO).unwrap()).unwrap();
        }
        compare(&y2, other, "read_exact");
        // What was read in from a file goes to the device with the rest, and comes back.
        let kernel = Kernel::new("invert", 0_u32, (each_mut(4096),), |_: Group, _: u32, y: &mut [u8]| {
            y.iter_mut().for_each(|y| *y = !*y);
        });
        rt.launch(&kernel, (&mut y2,)).unwrap();
        assert!((FROM..TO).all(|i| y2[i] == value(i)));
        y[0] = 1;
    });
}

/// Fails if a page leaves while a guard holds it, or a guard hands out old bytes.
#[test]
fn system_calls_through_guards_work_everywhere() {
    under_each("system_calls_through_guards_work_everywhere", LIMIT, |_| {
        let rt = plain();
        for (name, call) in READERS {
            let y = on_device(&rt);
            let slice = y.host(FROM..TO).unwrap();
            y.prefetch_to(&rt.devices()[0]);
            rt.sync().unwrap();
            assert_eq!(call(slice.as_ptr().cast_mut(), slice.len()), Ok(TO - FROM), "{name}");
            drop(slice);
            compare(&y, value, name);
        }
        for (name, call) in WRITERS {
            let mut y = on_device(&rt);
            let mut slice = y.host_mut(FROM..TO).unwrap();
            assert_eq!(call(slice.as_mut_ptr(), slice.len()), Ok(TO - FROM), "{name}");
            drop(slice);
            compare(&y, other, name);
        }
    });
}

/// A driver that is slow to let go of pages: it holds a move up between its beginning and the unmap.
struct Slow;

impl MirrorOps for Slow {
    fn update(&self, why: Action, _: &Pages) {
        if matches!(why, Action::Migrate { to: Some(_) }) {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Fails if a guard is handed out while its pages are on their way to a device: they would leave under it.
#[test]
fn a_guard_waits_for_pages_on_their_way_out() {
    under_each("a_guard_waits_for_pages_on_their_way_out", LIMIT, |m| {
        let rt = plain();
        let y = rt.shared_with(LEN, value).unwrap();
        let _slow = Mirror::register(rt.space(), Slow);
        y.prefetch_to(&rt.devices()[0]);
        std::thread::sleep(Duration::from_millis(30));
        let slice = y.host(FROM..TO).unwrap();
        rt.sync().unwrap();
        for (name, call) in READERS {
            assert_eq!(call(slice.as_ptr().cast_mut(), slice.len()), Ok(TO - FROM), "{name}");
        }
        if m != Mechanism::None {
            let guarded = y.range(FROM..TO).unwrap().residency();
            assert_eq!(guarded.devices[0].pages, 0, "a page left under the guard");
        }
    });
}

/// Fails if a system call on an absent page in mode `signal` does anything but what is documented: it says EFAULT, or how far
/// it came, and harms no byte; after a touch it works.
#[test]
fn signal_mode_says_efault() {
    under_each("signal_mode_says_efault", LIMIT, |m| {
        if !matches!(m, Mechanism::Signal | Mechanism::Guard) {
            return;
        }
        let rt = plain();
        for (calls, after) in [(READERS, value as fn(usize) -> u8), (WRITERS, other)] {
            for (name, call) in calls {
                let y = on_device(&rt);
                let at = y.as_host_ptr().cast_mut().wrapping_add(FROM);
                assert_eq!(call(at, TO - FROM), Err(libc::EFAULT), "{name}");
                compare(&y, value, name);
                assert_eq!(call(at, TO - FROM), Ok(TO - FROM), "{name}, with every page touched");
                compare(&y, after, name);
            }
        }
    });
}
