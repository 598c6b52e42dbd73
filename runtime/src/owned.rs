//! What the owner of an allocation may do with it as a whole: shorten it, split it, drop contents, never write it again.

use std::fmt;
use std::ops::{Deref, RangeBounds};
use std::sync::Arc;

use bytemuck::Pod;

use crate::Error;
use crate::hmm::lock::Free;
use crate::hmm::{ForkPolicy, PAGE, entry, fork, source};
use crate::shared::Shared;

impl<T: Pod + Send + Sync> Shared<T> {
    /// Shortens it to its first `len` elements and gives back the memory of the rest, on the host and on devices. Does nothing
    /// if it is not longer. Waits for unfinished launches that use the rest.
    ///
    /// ```
    /// # let rt = sterna::Runtime::new()?;
    /// let mut x = rt.shared_with(100_000, |i| i as u32)?;
    /// x.truncate(10)?;
    /// assert_eq!(x[..], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    /// # Ok::<(), sterna::Error>(())
    /// ```
    ///
    /// A reference to what goes may not live on:
    ///
    /// ```compile_fail,E0502
    /// # let rt = sterna::Runtime::new().unwrap();
    /// let mut x = rt.shared::<u32>(8).unwrap();
    /// let last = &x[7];
    /// x.truncate(4).unwrap();
    /// println!("{last}");
    /// ```
    ///
    /// # Errors
    /// [`Length`](Error::Length) for 0: an allocation has at least one element. [`OutOfHostMemory`](Error::OutOfHostMemory) where a
    /// copy has yet to get what goes, and there is no memory for that. [`InsideKernel`](Error::InsideKernel),
    /// [`Forked`](Error::Forked). Then it is as long as it was.
    pub fn truncate(&mut self, len: usize) -> Result<(), Error> {
        may_change()?;
        if len == 0 {
            return Err(Error::Length { len, elem: size_of::<T>(), most: self.0.core.seg.bytes() });
        }
        if len >= self.len() {
            return Ok(());
        }
        let core = &self.0.core;
        let rest = self.0.part(&(len..self.len()));
        core.discard(&rest)?;
        core.seg.heal(&rest);
        if rest.end == core.seg.extent.used() {
            core.seg.extent.shorten(rest.start);
        } else {
            core.seg.extent.vacate(&rest);
        }
        drop(self.0.cut(len));
        Ok(())
    }

    /// Splits it in two: the elements before `at` stay, those from `at` on are the answer. Nothing is copied and nothing is waited
    /// for; both are allocations of their own from then on, and each gives back the memory of its whole pages when it is dropped.
    ///
    /// Where the border is not on a page the two share that page, as [views](Self::split_at_mut) do: results are right, the page
    /// goes to and fro. With host-fault mechanism `none` launches need a border on a device's grain, as they do for views, as long as
    /// the rest of the grain is somebody's: until the other side is shortened by so much, or dropped.
    ///
    /// ```
    /// # let rt = sterna::Runtime::new()?;
    /// use sterna::kernels::fill;
    /// let mut low = rt.shared::<f32>(65_536)?;
    /// let mut high = low.split_off(32_768)?;
    /// rt.launch(&fill(1.0), (&mut low,))?;
    /// let other = std::thread::spawn(move || { high[0] = 2.0; high });
    /// assert_eq!((low[0], other.join().unwrap()[0]), (1.0, 2.0));
    /// # Ok::<(), sterna::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) unless both have elements. [`InsideKernel`](Error::InsideKernel), [`Forked`](Error::Forked).
    pub fn split_off(&mut self, at: usize) -> Result<Self, Error> {
        may_change()?;
        if at == 0 || at >= self.len() {
            return Err(Error::Invalid { what: "a split that leaves one side without elements" });
        }
        let mut rest = self.0.cut(at);
        self.0.core.part = true;
        rest.core.part = true;
        Ok(Self(rest))
    }

    /// Drops the contents of some elements: they read as zeros (all bits 0) afterwards, and their whole pages cost nothing until
    /// they are touched again. What a failed launch had tainted there is healed, and what was lost with a device forgotten. Waits
    /// for unfinished launches that use them.
    ///
    /// ```
    /// # let rt = sterna::Runtime::new()?;
    /// let mut x = rt.shared_with(100_000, |i| i as u32 + 1)?;
    /// x.discard(10..)?;
    /// assert_eq!((x[9], x[10], x[99_999]), (10, 0, 0));
    /// # Ok::<(), sterna::Error>(())
    /// ```
    ///
    /// It is no hint: who looks at the elements sees it, so nobody may be looking.
    ///
    /// ```compile_fail,E0502
    /// # let rt = sterna::Runtime::new().unwrap();
    /// let mut x = rt.shared::<u32>(8).unwrap();
    /// let first = &x[0];
    /// x.discard(..).unwrap();
    /// println!("{first}");
    /// ```
    ///
    /// # Errors
    /// [`Range`](Error::Range) if it does not lie inside; [`InsideKernel`](Error::InsideKernel), [`Forked`](Error::Forked);
    /// [`OutOfHostMemory`](Error::OutOfHostMemory) where a copy has yet to get what goes, and there is no memory for that;
    /// what the system says if it does not take memory back, and then any of the elements may be zeros.
    pub fn discard(&mut self, range: impl RangeBounds<usize>) -> Result<(), Error> {
        may_change()?;
        let range = self.0.resolve(range)?;
        if range.is_empty() {
            return Ok(());
        }
        let bytes = self.0.part(&range);
        let whole = self.0.core.discard(&bytes)?;
        // The elements that have a byte outside whole pages, at both ends.
        let size = size_of::<T>() as u64;
        let base = self.0.core.bytes.start;
        let (from, to) = if whole.start < whole.end { (whole.start, whole.end) } else { (bytes.end, bytes.end) };
        let head = range.start..((from.min(bytes.end) - base).div_ceil(size) as usize).min(range.end);
        let tail = (((to.min(bytes.end) - base) / size) as usize).max(head.end)..range.end;
        for edge in [head, tail] {
            if !edge.is_empty() {
                // Not by value: an element may be larger than a stack.
                self.0.replace(edge, bytemuck::fill_zeroes)?;
            }
        }
        self.0.core.seg.heal(&bytes);
        Ok(())
    }

    /// A copy that costs nothing until one of the two is touched: a page is copied when the copy first uses it, or when somebody
    /// is about to write the original, which gives the copy its page first. Pages that only a device has come home for it, and
    /// those that a [`host`](Self::host) guard keeps are copied at once. Waits for unfinished launches that write it.
    ///
    /// It costs a look at each block of 2 MiB, as far as the allocation reaches, and taking away the mappings that there are. A
    /// first touch of an original's page on the host counts as a write, since nothing tells them apart. With host-fault
    /// mechanism `none` nothing notices a touch at all: there everything is copied at once.
    ///
    /// ```
    /// # let rt = sterna::Runtime::new()?;
    /// let mut now = rt.shared_with(1 << 20, |i| i as u32)?;
    /// let before = now.cow_clone()?;
    /// now[7] = 0;
    /// assert_eq!((now[7], before[7]), (0, 7));
    /// # Ok::<(), sterna::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`try_read`](Self::try_read); [`TooBig`](Error::TooBig) if the arena has no room.
    pub fn cow_clone(&self) -> Result<Self, Error> {
        may_change()?;
        let core = &self.0.core;
        core.settle(false)?;
        let copy = source::copy_of(&mut Free::at_entry(), &core.seg, &core.bytes)?;
        let start = core.bytes.start % PAGE;
        let bytes = start..start + (core.bytes.end - core.bytes.start);
        copy.extent.shorten(bytes.end);
        core.rt.ask_fault_rule(&copy);
        Ok(Self::over(core.rt.clone(), copy, bytes))
    }

    /// Says what a forked child finds where the elements are: nothing, unless something else is said. What is said holds for their
    /// whole pages, and until it is said again or they are dropped.
    ///
    /// A child has neither devices nor shared memory; what it gets is ordinary memory, at the same address, that it can use through
    /// the handle. With [`Preserve`](ForkPolicy::Preserve) each fork waits for the launches that write the elements, brings
    /// them home, and copies them; where there is no memory for that, or a device fails, the child finds nothing.
    ///
    /// ```
    /// # let rt = sterna::Runtime::new()?;
    /// use sterna::ForkPolicy;
    /// let settings = rt.shared_with(1000, |i| i as u32)?;
    /// settings.set_fork_policy(ForkPolicy::Preserve)?;
    /// # Ok::<(), sterna::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`InsideKernel`](Error::InsideKernel), [`Forked`](Error::Forked) in a forked child.
    pub fn set_fork_policy(&self, policy: ForkPolicy) -> Result<(), Error> {
        may_change()?;
        fork::plan(&self.0.core.seg, &self.0.core.bytes, policy);
        Ok(())
    }

    /// Gives up writing it, for a handle that can be cloned: any number of threads and launches read it at once.
    ///
    /// ```
    /// # let rt = sterna::Runtime::new()?;
    /// use sterna::kernels::saxpy;
    /// let table = rt.shared_with(1000, |i| i as f32)?.into_read_only();
    /// let reader = std::thread::spawn({
    ///     let table = table.clone();
    ///     move || table[10]
    /// });
    /// let mut y = rt.shared::<f32>(1000)?;
    /// rt.launch(&saxpy(2.0), (&table, &mut y))?;
    /// assert_eq!((y[10], reader.join().unwrap()), (20.0, 10.0));
    /// # Ok::<(), sterna::Error>(())
    /// ```
    #[must_use]
    pub fn into_read_only(self) -> ReadOnly<T> {
        ReadOnly(Arc::new(self))
    }
}

/// A call that changes an allocation makes sense here.
fn may_change() -> Result<(), Error> {
    entry::check()
}

/// A shared allocation that nobody writes any more; a clone is another handle of the same. From [`Shared::into_read_only`].
///
/// It derefs to the [`Shared`], so everything that reads can be called on it.
///
/// ```compile_fail,E0596
/// # let rt = sterna::Runtime::new().unwrap();
/// let table = rt.shared::<u32>(8).unwrap().into_read_only();
/// table[0] = 1;
/// ```
///
/// ```compile_fail,E0277
/// # let rt = sterna::Runtime::new().unwrap();
/// let mut table = rt.shared::<f32>(8).unwrap().into_read_only();
/// rt.launch(&sterna::kernels::fill(1.0_f32), (&mut table,)).unwrap();
/// ```
pub struct ReadOnly<T: Pod>(pub(crate) Arc<Shared<T>>);

impl<T: Pod> ReadOnly<T> {
    /// The allocation to be written again, if this is its only handle.
    ///
    /// # Errors
    /// The handle itself, while there are others.
    pub fn try_into_shared(self) -> Result<Shared<T>, Self> {
        Arc::try_unwrap(self.0).map_err(Self)
    }
}

impl<T: Pod> Clone for ReadOnly<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Pod> Deref for ReadOnly<T> {
    type Target = Shared<T>;
    fn deref(&self) -> &Shared<T> {
        &self.0
    }
}

impl<T: Pod> fmt::Debug for ReadOnly<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReadOnly").field(&self.0).finish()
    }
}
