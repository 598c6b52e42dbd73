//! Allocations whose last handle a kernel drops.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sterna::Shared;
use sterna::hal::{Device as _, DeviceKind};
use sterna::kernel::{EachMut, Group, Kernel, each_mut};

use super::World;

/// Elements of a group.
const CHUNK: usize = 1024;

/// What kernels find, by the number that they are given.
static HANDS: Mutex<BTreeMap<u32, Shared<u32>>> = Mutex::new(BTreeMap::new());

fn hands() -> MutexGuard<'static, BTreeMap<u32, Shared<u32>>> {
    HANDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds one to every element, takes the handle with this number in its first group, drops it, and adds one to that group's elements
/// once more.
fn drops(key: u32) -> Kernel<(EachMut<u32>,)> {
    fn body(g: Group, key: u32, y: &mut [u32]) {
        let add_one = |y: &mut [u32]| y.iter_mut().for_each(|y| *y = y.wrapping_add(1));
        add_one(y);
        if g.index() > 0 {
            return;
        }
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let found = hands().remove(&key);
            if found.is_some() || Instant::now() > end {
                break drop(found); // with nothing locked
            }
            std::thread::yield_now();
        }
        add_one(y);
    }
    Kernel::new("drops", key, (each_mut(CHUNK),), body)
}

/// Takes back what no kernel has taken, since its device was lost.
pub(super) fn take_back(keys: &[u32]) -> Vec<Shared<u32>> {
    let mut hands = hands();
    keys.iter().filter_map(|k| hands.remove(k)).collect()
}

impl World {
    /// Has a kernel on `dev` drop the last handle of an allocation: of its own argument, or of another, which launches that are under
    /// way may still use.
    pub(super) fn drop_in_kernel(&mut self, of: usize, dev: usize, own: bool) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (dev, device) = self.device(dev);
        if self.below[dev].info().kind != DeviceKind::Cpu {
            return; // no handle can be dropped elsewhere
        }
        let key = NEXT.fetch_add(1, Ordering::Relaxed);
        self.keys.push(key);
        let kernel = drops(key);
        if own {
            let n = self.all[of].v.len();
            self.written(dev, of, &(0..n));
            let mut both = self.all.swap_remove(of);
            self.rt.on(&device).launch(&kernel, (&mut both.x,)).unwrap();
            let _ = hands().insert(key, both.x);
            return;
        }
        let mut beside = self.rt.shared::<u32>(3 * CHUNK).unwrap();
        let _ = hands().insert(key, self.all.swap_remove(of).x);
        self.rt.on(&device).launch(&kernel, (&mut beside,)).unwrap();
        assert!(beside[..CHUNK].iter().all(|v| *v == 2), "{:?}", &beside[..CHUNK]);
        assert!(beside[CHUNK..].iter().all(|v| *v == 1), "{:?}", &beside[CHUNK..]);
        assert!(!hands().contains_key(&key), "the kernel has not dropped it");
    }
}
