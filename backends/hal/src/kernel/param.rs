//! Parameters: what a group gets of a buffer, as a type and as a value.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::slice;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64};

use bytemuck::Pod;

use super::{Group, RawArg};
use crate::Access;

/// Which elements of a buffer a group gets. All counts are elements.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mapping {
    /// Group `g` owns elements `g·chunk .. (g+1)·chunk`, clipped to the buffer.
    Each {
        /// Elements a group; 0 counts as 1.
        chunk: u64,
    },
    /// As `Each`, and it reads `reach` elements more on either side, clipped to the buffer.
    Halo {
        /// Elements a group; 0 counts as 1.
        chunk: u64,
        /// Elements beside the chunk.
        reach: u64,
    },
    /// Every group reads everything.
    Whole,
    /// Every group changes anything, atomically.
    Scatter,
}

impl Mapping {
    /// How many groups it takes to cover `len` elements, or `None` if the mapping does not say.
    #[must_use]
    pub fn groups(self, len: u64) -> Option<u64> {
        match self {
            Self::Each { chunk } | Self::Halo { chunk, .. } => Some(len.div_ceil(chunk.max(1))),
            Self::Whole | Self::Scatter => None,
        }
    }

    /// The elements of a buffer of `len` elements that group number `group` may touch: inside the buffer, whatever the numbers are.
    ///
    /// Chunk and reach are the program's and may be as large as numbers get: what would lie beyond the last number lies beyond the
    /// buffer, so sums and products stop there and do not wrap.
    #[must_use]
    pub fn touched(self, group: u64, len: u64) -> Range<u64> {
        let own = |chunk: u64| {
            let start = group.saturating_mul(chunk.max(1));
            start..start.saturating_add(chunk.max(1))
        };
        match self {
            Self::Each { chunk } => own(chunk).start.min(len)..own(chunk).end.min(len),
            Self::Halo { chunk, reach } => {
                let Range { start, end } = own(chunk);
                start.saturating_sub(reach).min(len)..end.saturating_add(reach).min(len)
            }
            Self::Whole | Self::Scatter => 0..len,
        }
    }
}

/// What the engine knows of a parameter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ParamDesc {
    /// What the kernel does with it.
    pub access: Access,
    /// Which elements a group gets.
    pub mapping: Mapping,
    /// Bytes an element.
    pub elem: u64,
    /// What an element's address is a multiple of, in the Rust form.
    pub align: u64,
}

impl ParamDesc {
    fn of<T>(access: Access, mapping: Mapping) -> Self {
        Self { access, mapping, elem: size_of::<T>() as u64, align: align_of::<T>() as u64 }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A buffer parameter: one of [`Each`], [`EachMut`], [`EachOut`], [`Halo`], [`Whole`], [`Scatter`]. Sealed: what it says of a parameter
/// is what the Rust form's references are made from.
pub trait Param: sealed::Sealed + Copy + Send + Sync + fmt::Debug + 'static {
    /// The element type.
    type Elem: Pod + Send + Sync;
    /// What the Rust form gets for one group.
    type Item<'g>;

    /// What the engine knows of it.
    fn desc(&self) -> ParamDesc;

    /// The group's part of the buffer.
    ///
    /// # Safety
    /// `arg` is a buffer of whole, aligned `Elem`s, valid for this parameter's access while `'g` lasts; its mapping is one
    /// that this parameter's [`desc`](Self::desc) gave; nobody else has this group's part of a mutable parameter.
    unsafe fn item<'g>(arg: &RawArg<'g>, group: Group) -> Self::Item<'g>;
}

/// Takes a buffer argument apart: first element, length in elements, mapping.
///
/// # Safety
/// `arg` is a buffer of whole, aligned `T`s.
unsafe fn buffer<T>(arg: &RawArg<'_>) -> (*mut T, usize, Mapping) {
    match *arg {
        RawArg::Buffer { at, bytes, mapping } => {
            (at.as_ptr().cast(), usize::try_from(bytes).expect("64-bit host") / size_of::<T>(), mapping)
        }
        RawArg::Plain(_) => unreachable!("a buffer parameter got a plain value"),
    }
}

/// Elements of `mapping` that `group` may touch, as a range into a buffer of `len` elements.
fn touched(mapping: Mapping, group: Group, len: usize) -> Range<usize> {
    let r = mapping.touched(group.index() as u64, len as u64);
    // Clipped to `len`, so both ends fit.
    r.start as usize..r.end as usize
}

macro_rules! chunked {
    ($(#[$doc:meta])* $name:ident, $access:expr, $item:ty, $make:path) => {
        $(#[$doc])*
        pub struct $name<T> { chunk: u64, elem: PhantomData<fn() -> T> }
        impl<T> Clone for $name<T> { fn clone(&self) -> Self { *self } }
        impl<T> Copy for $name<T> {}
        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.chunk)
            }
        }
        impl<T> sealed::Sealed for $name<T> {}
        impl<T: Pod + Send + Sync> Param for $name<T> {
            type Elem = T;
            type Item<'g> = $item;
            fn desc(&self) -> ParamDesc {
                ParamDesc::of::<T>($access, Mapping::Each { chunk: self.chunk })
            }
            unsafe fn item<'g>(arg: &RawArg<'g>, group: Group) -> Self::Item<'g> {
                // SAFETY: the caller's.
                let (at, len, mapping) = unsafe { buffer::<T>(arg) };
                let part = touched(mapping, group, len);
                // The buffer may be there only in part, and then it begins where nothing is: hence no `add`.
                // SAFETY: inside the buffer, whatever chunk and group are, and the buffer is aligned for `T` by the caller's promise, so
                // each element is. Parts of different groups are disjoint.
                unsafe { $make(at.wrapping_add(part.start), part.len()) }
            }
        }
        impl<T> $name<T> {
            fn of(chunk: usize) -> Self {
                Self { chunk: (chunk as u64).max(1), elem: PhantomData }
            }
        }
    };
}

chunked! {
    /// Reads its own chunk. Made by [`each`] and [`rows`].
    Each, Access::Read, &'g [T], slice::from_raw_parts
}
chunked! {
    /// Reads and writes its own chunk. Made by [`each_mut`] and [`rows_mut`].
    EachMut, Access::ReadWrite, &'g mut [T], slice::from_raw_parts_mut
}
chunked! {
    /// Replaces its own chunk. Made by [`each_out`] and [`rows_out`]. The kernel writes every element: what it finds there is
    /// unspecified (zeros, or values that the buffer once had), and so is what a group leaves unwritten.
    EachOut, Access::Write, &'g mut [T], slice::from_raw_parts_mut
}

/// Each group reads its own `chunk` elements; the last group may get fewer. A `chunk` of 0 counts as 1.
#[must_use]
pub fn each<T>(chunk: usize) -> Each<T> {
    Each::of(chunk)
}

/// Each group reads its own `rows` rows of `width` elements.
#[must_use]
pub fn rows<T>(width: usize, rows: usize) -> Each<T> {
    each(width.saturating_mul(rows))
}

/// Each group reads and writes its own `chunk` elements; the last group may get fewer. A `chunk` of 0 counts as 1.
#[must_use]
pub fn each_mut<T>(chunk: usize) -> EachMut<T> {
    EachMut::of(chunk)
}

/// Each group reads and writes its own `rows` rows of `width` elements.
#[must_use]
pub fn rows_mut<T>(width: usize, rows: usize) -> EachMut<T> {
    each_mut(width.saturating_mul(rows))
}

/// Each group replaces its own `chunk` elements; the last group may get fewer. A `chunk` of 0 counts as 1.
#[must_use]
pub fn each_out<T>(chunk: usize) -> EachOut<T> {
    EachOut::of(chunk)
}

/// Each group replaces its own `rows` rows of `width` elements.
#[must_use]
pub fn rows_out<T>(width: usize, rows: usize) -> EachOut<T> {
    each_out(width.saturating_mul(rows))
}

/// Reads its own chunk and its neighbourhood. Made by [`halo`] and [`halo_rows`].
pub struct Halo<T> {
    chunk: u64,
    reach: u64,
    elem: PhantomData<fn() -> T>,
}

/// What a group sees through a [`Halo`] parameter: derefs to the elements it may read.
#[derive(Clone, Copy, Debug)]
pub struct HaloPart<'g, T> {
    all: &'g [T],
    own: (usize, usize),
    start: usize,
}

impl<'g, T> HaloPart<'g, T> {
    /// Where the group's own chunk lies within the elements it may read.
    #[must_use]
    pub fn own(&self) -> Range<usize> {
        self.own.0..self.own.1
    }

    /// Number, in the whole buffer, of the first element it may read.
    #[must_use]
    pub fn start(&self) -> usize {
        self.start
    }

    /// The elements it may read.
    #[must_use]
    pub fn as_slice(&self) -> &'g [T] {
        self.all
    }
}

impl<T> Deref for HaloPart<'_, T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        self.all
    }
}

/// Reads everything. Made by [`whole`].
pub struct Whole<T>(PhantomData<fn() -> T>);

/// Changes anything by atomic operations. Made by [`scatter`].
pub struct Scatter<T>(PhantomData<fn() -> T>);

macro_rules! plain_traits {
    ($($name:ident),*) => {$(
        impl<T> Clone for $name<T> { fn clone(&self) -> Self { *self } }
        impl<T> Copy for $name<T> {}
        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(stringify!($name)) }
        }
        impl<T> sealed::Sealed for $name<T> {}
    )*};
}
plain_traits!(Halo, Whole, Scatter);

/// Each group reads its own `chunk` elements and `reach` on either side. A `chunk` of 0 counts as 1.
#[must_use]
pub fn halo<T>(chunk: usize, reach: usize) -> Halo<T> {
    Halo { chunk: (chunk as u64).max(1), reach: reach as u64, elem: PhantomData }
}

/// Each group reads its own `rows` rows of `width` elements and `reach` rows on either side.
#[must_use]
pub fn halo_rows<T>(width: usize, rows: usize, reach: usize) -> Halo<T> {
    halo(width.saturating_mul(rows), width.saturating_mul(reach))
}

/// Every group reads the whole buffer.
#[must_use]
pub fn whole<T>() -> Whole<T> {
    Whole(PhantomData)
}

/// Every group changes any element, by atomic operations.
#[must_use]
pub fn scatter<T: ScatterElem>() -> Scatter<T> {
    Scatter(PhantomData)
}

impl<T: Pod + Send + Sync> Param for Halo<T> {
    type Elem = T;
    type Item<'g> = HaloPart<'g, T>;
    fn desc(&self) -> ParamDesc {
        let mapping = Mapping::Halo { chunk: self.chunk, reach: self.reach };
        ParamDesc::of::<T>(Access::Read, mapping)
    }
    unsafe fn item<'g>(arg: &RawArg<'g>, group: Group) -> Self::Item<'g> {
        // SAFETY: the caller's.
        let (at, len, mapping) = unsafe { buffer::<T>(arg) };
        let part = touched(mapping, group, len);
        let own = match mapping {
            Mapping::Halo { chunk, .. } => touched(Mapping::Each { chunk }, group, len),
            _ => part.clone(),
        };
        // As in `chunked`: the buffer may be there only in part.
        // SAFETY: inside the buffer, which nobody writes meanwhile.
        let all = unsafe { slice::from_raw_parts(at.wrapping_add(part.start).cast_const(), part.len()) };
        HaloPart { all, own: (own.start - part.start, own.end - part.start), start: part.start }
    }
}

impl<T: Pod + Send + Sync> Param for Whole<T> {
    type Elem = T;
    type Item<'g> = &'g [T];
    fn desc(&self) -> ParamDesc {
        ParamDesc::of::<T>(Access::Read, Mapping::Whole)
    }
    unsafe fn item<'g>(arg: &RawArg<'g>, _: Group) -> Self::Item<'g> {
        // SAFETY: the caller's.
        let (at, len, _) = unsafe { buffer::<T>(arg) };
        // SAFETY: the whole buffer, which nobody writes meanwhile.
        unsafe { slice::from_raw_parts(at.cast_const(), len) }
    }
}

/// An element that can be changed atomically; numbers with a point by their bits.
///
/// Sealed: a kernel gets the buffer's bytes as cells, so a cell must be a value whatever its bits are, must be changed through `&`
/// by atomic operations only, and must be as long and as aligned as the element. The atomic integers are; a type of the program's
/// choice need not be, and references would come out of plain bytes:
///
/// ```compile_fail,E0277
/// use sterna_hal::kernel::ScatterElem;
///
/// #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
/// #[repr(C)]
/// struct Fake(u64, u64);
/// impl ScatterElem for Fake {
///     type Cell = &'static str;
/// }
/// ```
pub trait ScatterElem: sealed::Sealed + Pod + Send + Sync {
    /// The atomic cell, of the same size and alignment.
    type Cell: Send + Sync + 'static;
}

macro_rules! scatter_elems {
    ($($elem:ty: $cell:ty),*) => {$(
        impl sealed::Sealed for $elem {}
        impl ScatterElem for $elem {
            type Cell = $cell;
        }
    )*};
}
scatter_elems!(u32: AtomicU32, i32: AtomicI32, u64: AtomicU64, i64: AtomicI64, f32: AtomicU32, f64: AtomicU64);

impl<T: ScatterElem> Param for Scatter<T> {
    type Elem = T;
    type Item<'g> = &'g [T::Cell];
    fn desc(&self) -> ParamDesc {
        ParamDesc::of::<T>(Access::ReadWrite, Mapping::Scatter)
    }
    unsafe fn item<'g>(arg: &RawArg<'g>, _: Group) -> Self::Item<'g> {
        const { assert!(size_of::<T>() == size_of::<T::Cell>() && align_of::<T>() == align_of::<T::Cell>()) };
        // SAFETY: the caller's.
        let (at, len, _) = unsafe { buffer::<T::Cell>(arg) };
        // SAFETY: the whole buffer. The trait is sealed and its cells are atomic integers, for which any bytes of the right length and
        // alignment, compared above, are a value; all groups access the buffer through such cells only.
        unsafe { slice::from_raw_parts(at.cast_const(), len) }
    }
}

/// A list of buffer parameters: a tuple of one to eight [`Param`]s. Sealed: a launch uses buffers as its `descs` say, and the Rust form
/// makes references of them.
///
/// ```compile_fail,E0277
/// use sterna_hal::kernel::{ParamDesc, Params};
///
/// #[derive(Clone, Copy, Debug)]
/// struct Mine;
/// impl Params for Mine {
///     const COUNT: usize = 1;
///     fn descs(&self) -> smallvec::SmallVec<[ParamDesc; 8]> {
///         smallvec::SmallVec::new()
///     }
/// }
/// ```
pub trait Params: sealed::Sealed + Copy + Send + Sync + fmt::Debug + 'static {
    /// How many.
    const COUNT: usize;
    /// What the engine knows of each, in order.
    fn descs(&self) -> smallvec::SmallVec<[ParamDesc; 8]>;
}

macro_rules! params_for_tuples {
    ($($count:literal: $($p:ident $i:tt),*;)*) => {$(
        impl<$($p: Param),*> sealed::Sealed for ($($p,)*) {}
        impl<$($p: Param),*> Params for ($($p,)*) {
            const COUNT: usize = $count;
            fn descs(&self) -> smallvec::SmallVec<[ParamDesc; 8]> {
                smallvec::smallvec![$(self.$i.desc()),*]
            }
        }
    )*};
}
params_for_tuples! {
    1: A 0;
    2: A 0, B 1;
    3: A 0, B 1, C 2;
    4: A 0, B 1, C 2, D 3;
    5: A 0, B 1, C 2, D 3, E 4;
    6: A 0, B 1, C 2, D 3, E 4, F 5;
    7: A 0, B 1, C 2, D 3, E 4, F 5, G 6;
    8: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_covers_every_element_once() {
        let m = Mapping::Each { chunk: 7 };
        for len in [0, 1, 6, 7, 8, 100] {
            let groups = m.groups(len).unwrap();
            let mut next = 0;
            for g in 0..groups {
                let r = m.touched(g, len);
                assert_eq!(r.start, next);
                next = r.end;
            }
            assert_eq!(next, len);
        }
    }

    #[test]
    fn numbers_as_large_as_they_get_stay_inside_the_buffer() {
        let numbers = [0, 1, 3, 64, 1 << 32, u64::MAX >> 1, u64::MAX - 8, u64::MAX - 1, u64::MAX];
        for (len, group) in [0, 1, 64, u64::MAX].into_iter().flat_map(|len| numbers.map(|g| (len, g))) {
            for (chunk, reach) in numbers.into_iter().flat_map(|chunk| numbers.map(|r| (chunk, r))) {
                let (each, halo) = (Mapping::Each { chunk }, Mapping::Halo { chunk, reach });
                let (own, all) = (each.touched(group, len), halo.touched(group, len));
                assert!(own.start <= own.end && own.end <= len, "{each:?} {group} {len}: {own:?}");
                assert!(all.start <= own.start && own.end <= all.end && all.end <= len, "{halo:?} {group} {len}: {all:?}");
                assert_eq!(each.groups(len), halo.groups(len));
                if reach >= len && own.start < len {
                    assert_eq!(all, 0..len, "a reach beyond both ends is everything");
                }
            }
        }
    }

    #[test]
    fn halo_is_clipped_at_both_ends() {
        let m = Mapping::Halo { chunk: 10, reach: 3 };
        assert_eq!(m.touched(0, 25), 0..13);
        assert_eq!(m.touched(1, 25), 7..23);
        assert_eq!(m.touched(2, 25), 17..25);
    }
}
