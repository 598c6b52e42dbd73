//! The kernels that a device has loaded.
//!
//! **Guarantee.** What [`load`](Kernels::load) gave stays loaded for as long as somebody holds it: whoever prepares a launch, and
//! the launch until it retires. The device is told to unload what nobody holds and nobody can ask for by the same code again, and
//! beyond [`IDLE`] kernels the one that was asked for longest ago; both when another kernel is loaded, and never later than with
//! the device.
//!
//! **Two look-ups.** By address of the code, which is all that a launch pays for; then by contents, so that a program that reads
//! or makes the same module again and again gets the same kernel. The keys are detached clones: they keep modules in place, and
//! do not count as users.
//!
//! **Locks:** `table`, a leaf; no code of the device runs under it. `loading`, above it, held while the device loads and unloads,
//! which may take as long as its kernels run: only whoever asks for a kernel that is not known waits for it, and nobody who
//! serves a fault does.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;
use sterna_hal::kernel::{Code, Contents, Watch};
use sterna_hal::{Device, DeviceError, KernelId};

/// How many kernels stay loaded of those that no launch uses.
const IDLE: usize = 1024;
/// How many addresses are known. Beyond that all are forgotten, and found again by contents.
const ADDRESSES: usize = 8 * IDLE;

/// A kernel on one device.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) id: KernelId,
    pub(crate) name: &'static str,
    /// When it was asked for last, in loads and look-ups by contents.
    asked: AtomicU64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Kernels {
    table: RwLock<Table>,
    loading: Mutex<()>,
    clock: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    by_address: FxHashMap<Code, (Arc<Loaded>, Watch<[u8]>)>,
    by_contents: HashMap<Contents, Arc<Loaded>>,
}

impl Kernels {
    /// The kernel that this code is on `device`, loaded now if it is not.
    pub(crate) fn load(&self, device: &dyn Device, code: &Code) -> Result<Arc<Loaded>, DeviceError> {
        if let Some(known) = self.known(code) {
            return Ok(known);
        }
        let _loading = self.loading.lock();
        // Somebody else may have loaded it meanwhile.
        if let Some(known) = self.known(code) {
            return Ok(known);
        }
        let now = self.clock.fetch_add(1, Ordering::Relaxed) + 1;
        let key = Contents(code.detached());
        let known = self.table.read().by_contents.get(&key).cloned();
        let loaded = match known {
            Some(known) => known,
            None => {
                // SAFETY: code of a `Kernel`: whoever calls takes it from one.
                let id = unsafe { device.load(&key.0) }?;
                Arc::new(Loaded { id, name: code.name, asked: AtomicU64::new(now) })
            }
        };
        loaded.asked.store(now, Ordering::Relaxed);
        let idle = {
            let mut table = self.table.write();
            table.add(key, code.watch(), &loaded);
            table.idle()
        };
        for gone in idle {
            // SAFETY: `load` gave it, and nothing loads meanwhile. Nobody holds it, so that no launch of it is unfinished or not
            // asked after; the table, which alone hands it out, has it no more.
            unsafe { device.unload(gone.id) };
        }
        Ok(loaded)
    }

    fn known(&self, code: &Code) -> Option<Arc<Loaded>> {
        let table = self.table.read();
        let (known, _) = table.by_address.get(code)?;
        known.asked.store(self.clock.load(Ordering::Relaxed), Ordering::Relaxed);
        Some(Arc::clone(known))
    }
}

impl Table {
    fn add(&mut self, key: Contents, watch: Watch<[u8]>, loaded: &Arc<Loaded>) {
        if self.by_address.len() >= ADDRESSES {
            self.by_address.clear();
        }
        self.by_address.insert(key.0.clone(), (Arc::clone(loaded), watch));
        self.by_contents.entry(key).or_insert_with(|| Arc::clone(loaded));
    }

    /// Takes out what is to be unloaded.
    fn idle(&mut self) -> Vec<Arc<Loaded>> {
        self.by_address.retain(|_, (_, watch)| !watch.is_gone());
        let mut addresses: HashMap<KernelId, usize> = HashMap::new();
        self.by_address.values().for_each(|(known, _)| *addresses.entry(known.id).or_default() += 1);
        let named = |known: &Arc<Loaded>| addresses.get(&known.id).copied().unwrap_or(0);
        let unused = self.by_contents.values().filter(|known| Arc::strong_count(known) == 1 + named(known));
        let mut unused: Vec<Arc<Loaded>> = unused.cloned().collect();
        // Code that is gone, then what was asked for longest ago.
        unused.sort_unstable_by_key(|known| (named(known) > 0, known.asked.load(Ordering::Relaxed)));
        let gone = unused.iter().take_while(|known| named(known) == 0).count();
        unused.truncate(gone.max(unused.len().saturating_sub(IDLE)));
        let ids: HashSet<KernelId> = unused.iter().map(|known| known.id).collect();
        if !ids.is_empty() {
            self.by_address.retain(|_, (known, _)| !ids.contains(&known.id));
            self.by_contents.retain(|_, known| !ids.contains(&known.id));
        }
        unused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_cpu::{CpuConfig, CpuDevice};
    use sterna_hal::kernel::{Group, Kernel, Spirv, each_mut};

    fn body(_: Group, _: (), _: &mut [u32]) {}

    /// A kernel whose module is `bytes`; the device runs the other form.
    fn code(bytes: impl Into<sterna_hal::kernel::Held<[u8]>>) -> Code {
        let kernel = Kernel::new("test", (), (each_mut(1),), body);
        // SAFETY: the CPU device never looks at the module.
        unsafe { kernel.with_spirv(Spirv::owned(bytes)) }.code().clone()
    }

    fn module(n: u32) -> Vec<u8> {
        n.to_le_bytes().to_vec()
    }

    fn device() -> CpuDevice {
        CpuDevice::new(0, CpuConfig::default()).unwrap()
    }

    #[test]
    fn what_nobody_has_any_more_is_unloaded() {
        let (device, kernels) = (device(), Kernels::default());
        let kept = code(module(u32::MAX));
        let first = kernels.load(&device, &kept).unwrap().id;
        for n in 0..100 {
            // The number of one that was unloaded is given again: this and the one before it are all there are.
            assert!(kernels.load(&device, &code(module(n))).unwrap().id.0 <= 2, "{n}");
        }
        assert_eq!(kernels.load(&device, &kept).unwrap().id, first);
        assert!(kernels.table.read().by_address.len() <= 2);
    }

    #[test]
    fn what_a_launch_holds_stays() {
        let (device, kernels) = (device(), Kernels::default());
        let held = kernels.load(&device, &code(module(7))).unwrap();
        for n in 100..200 {
            assert_ne!(kernels.load(&device, &code(module(n))).unwrap().id, held.id);
        }
        drop(held);
        let codes: Vec<Code> = (0..5).map(|n| code(module(n))).collect();
        let ids: HashSet<u32> = codes.iter().map(|c| kernels.load(&device, c).unwrap().id.0).collect();
        assert!(ids.contains(&0), "{ids:?}");
    }

    #[test]
    fn equal_modules_are_one_kernel() {
        let (device, kernels) = (device(), Kernels::default());
        let codes: Vec<Code> = (0..50).map(|n| code(module(n % 2))).collect();
        let ids: HashSet<KernelId> = codes.iter().map(|c| kernels.load(&device, c).unwrap().id).collect();
        assert_eq!(ids.len(), 2);
        let leaked = |n| code(&*Box::leak(module(n).into_boxed_slice()));
        assert!(ids.contains(&kernels.load(&device, &leaked(1)).unwrap().id));
    }

    #[test]
    fn of_code_that_stays_the_kernels_asked_for_longest_ago_go() {
        let (device, kernels) = (device(), Kernels::default());
        let codes: Vec<Code> = (0..IDLE as u32 + 200).map(|n| code(module(n))).collect();
        let held = kernels.load(&device, &codes[0]).unwrap();
        for c in &codes {
            kernels.load(&device, c).unwrap();
        }
        // Besides those, the one that is held and the one that was loaded last.
        assert_eq!(kernels.table.read().by_contents.len(), IDLE + 2);
        assert_eq!(kernels.load(&device, &codes[0]).unwrap().id, held.id);
        let last = kernels.table.read().by_address.contains_key(&codes[codes.len() - 1]);
        let second = kernels.table.read().by_address.contains_key(&codes[1]);
        assert!(last && !second);
    }
}
