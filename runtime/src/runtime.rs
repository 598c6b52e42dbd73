//! The runtime: devices, a policy, a scheduler, and allocations.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytemuck::Pod;
use parking_lot::Mutex;
use sterna_hal as hal;
use sterna_hal::panics::caught_inside;

use crate::device::Device;
use crate::hmm::entry;
use crate::hmm::fork;
use crate::hmm::inflight::ErrorSink;
use crate::hmm::lock::Free;
use crate::hmm::mirror::DeviceMirror;
use crate::hmm::os;
use crate::hmm::reaper;
use crate::hmm::segment::Kind;
use crate::hmm::{BLOCK, Mechanism, Segment, Space};
use crate::launch::Args;
use crate::pending::Pending;
use crate::policy::{self, Policy};
use crate::sched::Scheduler;
use crate::shared::Shared;
use crate::stats::Stats;
use crate::{Error, backend, config};

/// A GPU compute runtime with unified memory: devices, a policy, and shared allocations. Cheap to clone; all clones are one.
///
/// ```
/// use sterna::Runtime;
/// use sterna::kernels::saxpy;
///
/// let rt = Runtime::new()?;
/// let x = rt.shared_from(&[1.0_f32, 2.0, 3.0])?;
/// let mut y = rt.shared::<f32>(x.len())?;          // zero-filled, costs nothing until touched
/// y[0] = 10.0;                                      // ordinary host code
/// rt.launch(&saxpy(2.0), (&x, &mut y))?;            // returns at once; pages move as needed
/// assert_eq!(y[..], [12.0, 4.0, 6.0]);              // waits for the kernel; the page comes home
/// # Ok::<(), sterna::Error>(())
/// ```
#[derive(Clone)]
pub struct Runtime(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) space: &'static Space,
    pub(crate) devices: Vec<Arc<DeviceMirror>>,
    pub(crate) policy: Arc<Mutex<Box<dyn Policy>>>,
    policy_name: &'static str,
    pub(crate) sched: Scheduler,
    pub(crate) errors: Arc<ErrorSink>,
    launches: AtomicU64,
}

/// Chooses devices, memory budget, policy and host-fault mechanism. What is not chosen comes from the
/// [environment](crate#environment), then from defaults.
///
/// ```
/// let rt = sterna::Runtime::builder().device("cpu:0").memory(64 << 20).policy("demand")?.build()?;
/// assert_eq!(rt.stats().policy, "demand");
/// # Ok::<(), sterna::Error>(())
/// ```
#[derive(Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct Builder {
    selectors: Vec<String>,
    opened: Vec<Arc<dyn hal::Device>>,
    memory: Option<u64>,
    policy: Option<Box<dyn Policy>>,
    mechanism: Option<Mechanism>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("devices", &self.selectors).field("memory", &self.memory).finish_non_exhaustive()
    }
}

impl Builder {
    /// Adds the device that `selector` names (`cpu:0`); the first one is the default for launches.
    pub fn device(mut self, selector: impl Into<String>) -> Self {
        self.selectors.push(selector.into());
        self
    }

    /// Adds a device that the caller has opened: a backend of one's own, or one with special settings.
    pub fn open_device(mut self, device: Arc<dyn hal::Device>) -> Self {
        self.opened.push(device);
        self
    }

    /// Memory budget of each named device, in bytes.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// A built-in policy, by name.
    ///
    /// # Errors
    /// [`UnknownName`](Error::UnknownName), with the names there are.
    pub fn policy(mut self, name: &str) -> Result<Self, Error> {
        self.policy = Some(policy::by_name(name)?);
        Ok(self)
    }

    /// A policy of one's own.
    pub fn custom_policy(mut self, policy: impl Policy + 'static) -> Self {
        self.policy = Some(Box::new(policy));
        self
    }

    /// How host faults are served. The first runtime of a process decides for all.
    pub fn host_faults(mut self, mechanism: Mechanism) -> Self {
        self.mechanism = Some(mechanism);
        self
    }

    /// Makes the runtime. Opening devices takes some 96 KiB of the calling thread's stack, and what a driver takes.
    ///
    /// # Errors
    /// An unknown or unusable device, a mechanism that is not available, an environment value that cannot be read, address
    /// space or slots that are not to be had; [`DeviceInUse`](Error::DeviceInUse) for one that is driven already. Every message
    /// names the remedy. [`InsideKernel`](Error::InsideKernel), [`Forked`](Error::Forked).
    pub fn build(self) -> Result<Runtime, Error> {
        entry::check()?;
        fork::watch();
        let mechanism = match self.mechanism {
            None => config::var("STERNA_HOST_FAULTS", |v| v.parse::<Mechanism>().map_err(|e| e.to_string()))?,
            some => some,
        };
        let memory = match self.memory {
            None => config::var("STERNA_DEVICE_MEMORY", config::parse_bytes)?,
            some => some,
        };
        let policy = match self.policy {
            Some(p) => p,
            None => config::var("STERNA_POLICY", |v| policy::by_name(v).map_err(|e| e.to_string()))?
                .unwrap_or_else(|| Box::new(policy::Auto)),
        };
        // Before anything is opened: it is the program's code.
        let policy_name = caught_inside(|| policy.name())
            .map_err(|_| Error::Invalid { what: "a policy that panics when it is asked for its name" })?;
        let mut selectors = self.selectors;
        let mut by_environment = Vec::new();
        if selectors.is_empty() && self.opened.is_empty() {
            let named =
                config::var("STERNA_DEVICE", |v| Ok(v.split(',').map(|s| s.trim().to_string()).collect::<Vec<_>>()))?;
            by_environment.extend(named.is_some().then_some("STERNA_DEVICE"));
            selectors = named.map_or_else(backend::best, Ok)?;
        }
        by_environment.extend(self.memory.is_none().then_some("STERNA_DEVICE_MEMORY"));
        let space = Space::process(mechanism)?;
        os::accept_faults(); // before drivers start threads, which inherit what this one blocks
        let setting = if self.memory.is_some() { config::BY_BUILDER } else { config::BY_ENVIRONMENT };
        let named = selectors.iter().map(|s| backend::open(s, memory, setting).map(|d| (d, setting)));
        let mut devices = Vec::new();
        for device in named.chain(self.opened.into_iter().map(|d| Ok((d, config::BY_SETTINGS)))) {
            match device.and_then(|(d, setting)| DeviceMirror::new(space, d, setting)) {
                Ok(mirror) => devices.push(mirror),
                Err(e) => {
                    crate::hmm::mirror::give_up(devices);
                    return Err(config::blamed(e, &by_environment));
                }
            }
        }
        let slots: Vec<usize> = devices.iter().map(|m| m.slot()).collect();
        let policy = Arc::new(Mutex::new(policy));
        let rt = Runtime(Arc::new(Inner {
            space,
            devices,
            policy: Arc::clone(&policy),
            policy_name,
            sched: Scheduler::new(space, policy, &slots),
            errors: Arc::default(),
            launches: AtomicU64::new(1),
        }));
        #[cfg(feature = "tracing")]
        tracing::info!(mechanism = %space.mechanism(), policy = policy_name, devices = ?rt.devices(), "sterna runtime");
        Ok(rt)
    }
}

impl Runtime {
    /// A runtime as the environment says, or with the best device and the best host-fault mechanism there is.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn new() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// Chooses what a runtime is made of.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Its devices; the first one is the default.
    #[must_use]
    pub fn devices(&self) -> Vec<Device> {
        self.0.devices.iter().map(|m| Device(Arc::clone(m))).collect()
    }

    /// The process's address space, for people who write drivers.
    #[must_use]
    pub fn space(&self) -> &'static Space {
        self.0.space
    }

    /// A shared allocation of `len` elements, all zero. It costs nothing until it is touched.
    ///
    /// # Errors
    /// [`Length`](Error::Length) for zero or overflowing lengths; [`Alignment`](Error::Alignment) for elements aligned to more than 2 MiB;
    /// [`TooBig`](Error::TooBig) beyond the arena; [`Forked`](Error::Forked) in a forked child.
    pub fn shared<T: Pod + Send + Sync>(&self, len: usize) -> Result<Shared<T>, Error> {
        fork::check()?;
        let bytes = self.bytes_of::<T>(len)?;
        let seg = Segment::with(self.0.space, bytes, Kind::Private)?;
        self.ask_fault_rule(&seg);
        Ok(Shared::over(self.clone(), seg, 0..bytes))
    }

    /// Bytes of `len` elements, if an allocation can have such: every way to make one asks here. A segment begins on a block, and each of
    /// its parts that becomes an allocation or a view of its own at a whole element, so elements that fit a block's alignment are aligned.
    pub(crate) fn bytes_of<T>(&self, len: usize) -> Result<u64, Error> {
        if align_of::<T>() as u64 > BLOCK {
            return Err(Error::Alignment { align: align_of::<T>(), most: BLOCK });
        }
        let (elem, most) = (size_of::<T>(), self.0.space.bytes());
        let bytes = (len as u64).checked_mul(elem as u64).filter(|b| *b > 0 && *b <= most);
        bytes.ok_or(Error::Length { len, elem, most })
    }

    /// Has the policy say how far faults of a new segment reach.
    pub(crate) fn ask_fault_rule(&self, seg: &Segment) {
        // A kernel, or a policy that is being asked, does not wait for one.
        let policy = &self.0.policy;
        let asked = if hal::in_kernel() { policy.try_lock() } else { Some(policy.lock()) };
        // One that panics has said nothing: a rule costs time, never data.
        let rule = asked.and_then(|mut policy| caught_inside(|| policy.allocated(seg.bytes())).ok());
        seg.set_rule(rule.unwrap_or_default());
    }

    /// A shared allocation with a copy of `values`.
    ///
    /// # Errors
    /// As [`shared`](Self::shared), and [`OutOfHostMemory`](Error::OutOfHostMemory).
    pub fn shared_from<T: Pod + Send + Sync>(&self, values: &[T]) -> Result<Shared<T>, Error> {
        let mut s = self.shared(values.len())?;
        s.write_from(values)?;
        Ok(s)
    }

    /// A shared allocation whose element `i` is `value(i)`, filled in place.
    ///
    /// # Errors
    /// As [`shared_from`](Self::shared_from).
    pub fn shared_with<T: Pod + Send + Sync>(&self, len: usize, value: impl FnMut(usize) -> T) -> Result<Shared<T>, Error> {
        let mut s = self.shared(len)?;
        s.fill_with(value)?;
        Ok(s)
    }

    /// Launches a kernel on the default device and returns at once, even when gigabytes must move first. A kernel without a form
    /// for the default device runs on the first one that it has a form for.
    ///
    /// Launches are ordered by the bytes that they share; there are no streams. Arguments are `&` for what the kernel reads and
    /// `&mut` for what it writes, of [`Shared`] or of views.
    ///
    /// # Errors
    /// Arguments that do not fit the kernel or belong to another runtime; a kernel without a form for the device, or one that the device
    /// does not accept, and a device that is known to be lost; launching inside a kernel; a forked child. Nothing was launched then, and
    /// nothing that it would have written has changed. What goes wrong later comes back from [`Pending::wait`], from a read of what the launch would have written, and from
    /// [`sync`](Self::sync).
    ///
    /// ```compile_fail,E0502
    /// # let rt = sterna::Runtime::new().unwrap();
    /// # let mut y = rt.shared::<f32>(8).unwrap();
    /// let first = &y[0];
    /// rt.launch(&sterna::kernels::fill(1.0_f32), (&mut y,)).unwrap(); // `first` is still alive
    /// println!("{first}");
    /// ```
    pub fn launch<P: hal::kernel::Params, A: Args<P>>(
        &self,
        kernel: &hal::kernel::Kernel<P>,
        args: A,
    ) -> Result<Pending, Error> {
        let form = |m: &&Arc<DeviceMirror>| kernel.code().has(m.caps().form);
        let device = self.0.devices.iter().find(form).unwrap_or(&self.0.devices[0]);
        self.launch_on(device, kernel, args)
    }

    /// The runtime with another default device, for `rt.on(&device).launch(…)`.
    ///
    /// # Panics
    /// If the device belongs to another runtime.
    #[must_use]
    pub fn on(&self, device: &Device) -> On<'_> {
        assert!(self.0.devices.iter().any(|m| Arc::ptr_eq(m, &device.0)), "{} belongs to another runtime", device.id());
        On { rt: self, device: Arc::clone(&device.0) }
    }

    /// Waits for every launch and prefetch, and returns the first error that nobody has seen.
    ///
    /// # Errors
    /// That error; [`InsideKernel`](Error::InsideKernel) when called in a kernel.
    pub fn sync(&self) -> Result<(), Error> {
        let mut free = entry::enter()?;
        self.0.sched.drain();
        for m in &self.0.devices {
            for l in m.live() {
                l.wait(&mut free, None);
            }
            m.reap();
        }
        self.0.errors.first_unseen().map_or(Ok(()), Err)
    }

    /// What it did since it was made.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let devices = self.0.devices.iter();
        Stats {
            mechanism: self.0.space.mechanism(),
            policy: self.0.policy_name,
            devices: devices
                .map(|m| {
                    // In a forked child the device's locks may be held for ever.
                    let memory = if fork::forked() { hal::Memory { budget: 0, in_use: 0 } } else { m.device().memory() };
                    m.rec().counters.read(m.device().info().id.clone(), memory)
                })
                .collect(),
        }
    }

    pub(crate) fn next_launch(&self) -> u64 {
        self.0.launches.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("devices", &self.devices())
            .field("policy", &self.0.policy_name)
            .finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if fork::forked() {
            // Threads and devices are the parent's; their handles must not be joined or closed here.
            std::mem::forget(std::mem::take(&mut self.devices));
            self.sched.abandon();
            return;
        }
        let (devices, sched) = (std::mem::take(&mut self.devices), self.sched.clone());
        // Now, and not when another thread comes to it.
        devices.iter().for_each(|m| m.ends());
        let errors = Arc::clone(&self.errors);
        reaper::end_alone(move || {
            let mut free = Free::at_entry();
            sched.stop();
            for m in &devices {
                for l in m.live() {
                    l.wait(&mut free, None);
                }
                m.reap();
            }
            errors.wakers.close();
            crate::hmm::mirror::give_up(devices);
        });
    }
}

/// A [`Runtime`] with another default device.
#[derive(Debug)]
pub struct On<'a> {
    rt: &'a Runtime,
    device: Arc<DeviceMirror>,
}

impl On<'_> {
    /// As [`Runtime::launch`], on this device.
    ///
    /// # Errors
    /// As [`Runtime::launch`].
    pub fn launch<P: hal::kernel::Params, A: Args<P>>(
        &self,
        kernel: &hal::kernel::Kernel<P>,
        args: A,
    ) -> Result<Pending, Error> {
        self.rt.launch_on(&self.device, kernel, args)
    }
}
