//! The handle of a shared allocation, and the gate that makes `Deref` sound.
//!
//! **Guarantee.** While a reference obtained here lives, every load through it gives the value that the program's order of
//! launches and stores says, and every store lands. Three layers give that: borrows (at a launch no conflicting host reference is
//! alive), the gate (`deref` waits for unfinished launches that write, `deref_mut` for those that read or write), and faults that
//! only fetch.
//!
//! **Cost.** `written` is stored only through `&mut`, so `deref` reads it plainly and the check leaves loops; the cold path takes
//! the core's address and never `&mut self`, so that the optimiser knows that `ptr` and `len` stay.

mod handle;

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range, RangeBounds};
use std::sync::Arc;

use bytemuck::Pod;

use crate::guard::{HostMut, HostRef};
use crate::hmm::fork;
use crate::hmm::{PAGE, Pages, Segment};
use crate::residency::Residency;
use crate::runtime::Runtime;
use crate::{Advice, Device, Error};

pub(crate) use handle::{Handle, SharedBytes};

macro_rules! reading {
    ($T:ident) => {
        /// How many elements.
        #[must_use]
        pub fn len(&self) -> usize {
            self.0.len()
        }

        /// Whether there are none. An allocation has at least one; a view may have none.
        #[must_use]
        pub fn is_empty(&self) -> bool {
            self.0.len() == 0
        }

        /// The elements, or the error for which `deref` would panic: of a failed launch that would have written some of them,
        /// or of a lost device that had the only copy. What is still in a [mapped file](crate::Runtime::map_file) is read, and what
        /// a device alone has is copied home: no load through the slice can meet a loss that had happened before this returned, or
        /// one that comes later, unless a launch on other bytes of the same page takes that page again. Of a part, only the part
        /// comes: take a [`range`](Self::range) first.
        ///
        /// # Errors
        /// That error; [`File`](Error::File); [`InsideKernel`](Error::InsideKernel) in a kernel; [`Forked`](Error::Forked) in a
        /// forked child.
        pub fn try_read(&self) -> Result<&[$T], Error> {
            fork::check()?;
            self.0.core.fetch()?;
            let slice = self.0.try_read()?;
            self.0.core.save()?;
            Ok(slice)
        }

        /// A view of some elements, to be read by launches and the host.
        ///
        /// # Errors
        /// [`Range`](Error::Range) if it does not lie inside.
        pub fn range(&self, range: impl RangeBounds<usize>) -> Result<View<'_, $T>, Error> {
            let range = self.0.resolve(range)?;
            self.0.note_read();
            Ok(View(self.0.view(&range), PhantomData))
        }

        /// The elements of `range`, at home and kept there while the guard lives: for I/O, on every mechanism.
        ///
        /// # Errors
        /// As [`try_read`](Self::try_read), and [`Range`](Error::Range).
        pub fn host(&self, range: impl RangeBounds<usize>) -> Result<HostRef<'_, $T>, Error> {
            let range = self.0.resolve(range)?;
            let slice = self.0.try_read()?;
            let guard = self.0.core.pin(&self.0.part(&range), false)?;
            Ok(HostRef::new(&slice[range], guard))
        }

        /// Asks for the pages to be brought to a device. A hint: never fails, changes no byte, returns at once.
        pub fn prefetch_to(&self, device: &Device) {
            self.0.prefetch(Some(device));
        }

        /// Asks for the pages to be brought home. A hint: never fails, changes no byte, returns at once.
        pub fn prefetch_to_host(&self) {
            self.0.prefetch(None);
        }

        /// Says something of the elements that helps to place them. A hint: never fails, changes no byte, moves nothing.
        pub fn advise(&self, advice: Advice) {
            self.0.core.advise(&advice, true);
        }

        /// Takes back what [`advise`](Self::advise) said of the elements.
        pub fn unadvise(&self, advice: Advice) {
            self.0.core.advise(&advice, false);
        }

        /// Where the pages are now.
        #[must_use]
        pub fn residency(&self) -> Residency {
            Residency::of(&self.0.core)
        }

        /// The pages of the arena that hold the elements, for people who write drivers.
        #[must_use]
        pub fn pages(&self) -> Pages {
            self.0.pages()
        }

        /// The first element's address on the host. Who reads or writes through it sees to what `deref` and `deref_mut` see to:
        /// no launch that conflicts is unfinished, and in mode `none` the bytes are home.
        #[must_use]
        pub fn as_host_ptr(&self) -> *const $T {
            self.0.ptr.as_ptr()
        }
    };
}

macro_rules! writing {
    ($T:ident) => {
        /// Waits for unfinished launches that use any of it, as `deref_mut` does, and returns the error for which that would
        /// panic. Afterwards indexing costs what it costs on a slice, until the next launch: without it each access through the
        /// handle first looks whether the launch has ended, which keeps a loop from being vectorised.
        ///
        /// # Errors
        /// As [`try_read`](Self::try_read).
        pub fn settle(&mut self) -> Result<&mut [$T], Error> {
            fork::check()?;
            self.0.core.settle(true)?;
            Ok(self.0.get_mut())
        }

        /// A view of some elements, to be written by launches and the host.
        ///
        /// # Errors
        /// [`Range`](Error::Range) if it does not lie inside.
        pub fn range_mut(&mut self, range: impl RangeBounds<usize>) -> Result<ViewMut<'_, $T>, Error> {
            let range = self.0.resolve(range)?;
            self.0.note_write();
            Ok(ViewMut(self.0.view(&range), PhantomData))
        }

        /// Two views, of the elements before `mid` and from `mid` on.
        ///
        /// # Errors
        /// [`Range`](Error::Range) if `mid` lies behind the end.
        pub fn split_at_mut(&mut self, mid: usize) -> Result<(ViewMut<'_, $T>, ViewMut<'_, $T>), Error> {
            let (a, b) = (self.0.resolve(..mid)?, self.0.resolve(mid..)?);
            self.0.note_write();
            Ok((ViewMut(self.0.view(&a), PhantomData), ViewMut(self.0.view(&b), PhantomData)))
        }

        /// Views of `n` elements each; the last may have fewer.
        ///
        /// # Panics
        /// If `n` is 0, as [`slice::chunks_mut`].
        pub fn chunks_mut(&mut self, n: usize) -> impl ExactSizeIterator<Item = ViewMut<'_, $T>> {
            assert!(n > 0, "chunks of 0 elements");
            self.0.note_write();
            let handle = &self.0;
            let len = handle.len();
            (0..len.div_ceil(n)).map(move |i| ViewMut(handle.view(&(i * n..((i + 1) * n).min(len))), PhantomData))
        }

        /// The elements of `range`, at home and kept there while the guard lives: for I/O, on every mechanism.
        ///
        /// # Errors
        /// As [`try_read`](Self::try_read), and [`Range`](Error::Range).
        pub fn host_mut(&mut self, range: impl RangeBounds<usize>) -> Result<HostMut<'_, $T>, Error> {
            let range = self.0.resolve(range)?;
            fork::check()?;
            self.0.core.settle(true)?;
            let guard = self.0.core.pin(&self.0.part(&range), true)?;
            // SAFETY: the handle's own elements; what conflicts with a host access has ended.
            let slice = unsafe { std::slice::from_raw_parts_mut(self.0.ptr.as_ptr(), self.0.len) };
            Ok(HostMut::new(&mut slice[range], guard))
        }

        /// Replaces every element. What a failed launch had tainted is healed.
        ///
        /// # Errors
        /// [`Range`](Error::Range) if the lengths differ; [`OutOfHostMemory`](Error::OutOfHostMemory).
        pub fn write_from(&mut self, values: &[$T]) -> Result<(), Error> {
            if values.len() != self.0.len() {
                return Err(Error::Range { start: 0, end: values.len(), len: self.0.len() });
            }
            self.0.replace(0..values.len(), |to| to.copy_from_slice(values))
        }

        /// Replaces element `i` by `value(i)`, for all. What a failed launch had tainted is healed.
        ///
        /// # Errors
        /// [`OutOfHostMemory`](Error::OutOfHostMemory).
        pub fn fill_with(&mut self, mut value: impl FnMut(usize) -> $T) -> Result<(), Error> {
            self.0.replace(0..self.0.len(), |to| {
                for (i, v) in to.iter_mut().enumerate() {
                    *v = value(i);
                }
            })
        }
    };
}

/// A shared allocation: a slice on the host, a buffer on devices, one allocation. Unique, as a `Vec` is: views share it.
///
/// ```compile_fail,E0599
/// # let rt = sterna::Runtime::new().unwrap();
/// let x = rt.shared::<f32>(8).unwrap();
/// let y = x.clone(); // a second handle would make `&mut` a lie
/// ```
///
/// A view keeps its parent borrowed:
///
/// ```compile_fail,E0502
/// # let rt = sterna::Runtime::new().unwrap();
/// let mut x = rt.shared::<f32>(8).unwrap();
/// let half = x.range_mut(..4).unwrap();
/// println!("{}", x[0]);
/// drop(half);
/// ```
///
/// and what a launch writes needs `&mut`:
///
/// ```compile_fail,E0277
/// # let rt = sterna::Runtime::new().unwrap();
/// let x = rt.shared::<f32>(8).unwrap();
/// rt.launch(&sterna::kernels::fill(1.0_f32), (&x,)).unwrap();
/// ```
///
/// One argument cannot be both read and written:
///
/// ```compile_fail,E0502
/// # let rt = sterna::Runtime::new().unwrap();
/// let mut x = rt.shared::<f32>(8).unwrap();
/// rt.launch(&sterna::kernels::saxpy(1.0), (&x, &mut x)).unwrap();
/// ```
///
/// Elements are plain data:
///
/// ```compile_fail,E0277
/// # let rt = sterna::Runtime::new().unwrap();
/// let x = rt.shared::<String>(8).unwrap();
/// ```
pub struct Shared<T: Pod>(pub(crate) Handle<T>);

/// Some elements of a [`Shared`], to be read.
pub struct View<'a, T: Pod>(pub(crate) Handle<T>, PhantomData<&'a T>);

/// Some elements of a [`Shared`], to be read and written.
pub struct ViewMut<'a, T: Pod>(pub(crate) Handle<T>, PhantomData<&'a mut T>);

impl<T: Pod + Send + Sync> Shared<T> {
    /// The owner of bytes `bytes` of a segment that nobody else has.
    pub(crate) fn over(rt: Runtime, seg: Arc<Segment>, bytes: Range<u64>) -> Self {
        Self(Handle::new(SharedBytes { seg, bytes, rt, part: false }, false))
    }

    reading!(T);
    writing!(T);
}

impl<T: Pod + Send + Sync> View<'_, T> {
    reading!(T);
}

impl<T: Pod + Send + Sync> ViewMut<'_, T> {
    reading!(T);
    writing!(T);
}

macro_rules! deref {
    ($name:literal, $handle:ty) => {
        impl<T: Pod> Deref for $handle {
            type Target = [T];
            /// Waits for unfinished launches that write any of it.
            ///
            /// # Panics
            /// With the error of such a launch if it failed; inside a kernel, if it would have to wait.
            #[inline]
            fn deref(&self) -> &[T] {
                self.0.get()
            }
        }
        impl<T: Pod> fmt::Debug for $handle {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // Not the elements: printing must neither wait nor move pages.
                write!(f, "{}({} elements at {:p})", $name, self.0.len, self.0.ptr)
            }
        }
    };
}
macro_rules! deref_mut {
    ($handle:ty) => {
        impl<T: Pod> DerefMut for $handle {
            /// Waits for unfinished launches that read or write any of it.
            ///
            /// # Panics
            /// As `deref`.
            #[inline]
            fn deref_mut(&mut self) -> &mut [T] {
                self.0.get_mut()
            }
        }
    };
}
deref!("Shared", Shared<T>);
deref!("View", View<'_, T>);
deref!("ViewMut", ViewMut<'_, T>);
deref_mut!(Shared<T>);
deref_mut!(ViewMut<'_, T>);

const _: () = assert!(PAGE == 4096);
