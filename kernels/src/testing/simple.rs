//! A device that could not be simpler: runs the groups of a kernel's Rust form one after the other, in a shuffled order. For the
//! tests of this crate and for the example `speed`, which includes this file.

#![allow(unsafe_code, reason = "hands raw arguments to Rust forms, as a backend does")]

use std::marker::PhantomData;
use std::ptr::NonNull;

use bytemuck::Pod;
use sterna_hal::Access;
use sterna_hal::kernel::{Group, Kernel, Params, RawArg};

use super::random::Random;

/// A buffer of a launch, borrowed as the launch will use it.
pub(crate) struct Buf<'a> {
    pub(super) at: NonNull<u8>,
    pub(super) len: usize,
    pub(super) elem: usize,
    pub(super) writable: bool,
    borrow: PhantomData<&'a mut [u8]>,
}

impl<'a> Buf<'a> {
    pub(crate) fn read<T: Pod>(x: &'a [T]) -> Self {
        Self { at: NonNull::from(x).cast(), len: x.len(), elem: size_of::<T>(), writable: false, borrow: PhantomData }
    }

    pub(crate) fn write<T: Pod>(x: &'a mut [T]) -> Self {
        let len = x.len();
        Self { at: NonNull::from(x).cast(), len, elem: size_of::<T>(), writable: true, borrow: PhantomData }
    }
}

/// Launches `kernel` with `bufs` as they are.
pub(crate) fn launch<P: Params>(kernel: &Kernel<P>, seed: u64, bufs: &[Buf<'_>]) {
    let descs = kernel.params();
    assert_eq!(descs.len(), bufs.len());
    let mut counts = bufs.iter().zip(&descs).filter_map(|(b, d)| d.mapping.groups(b.len as u64));
    let groups = counts.next().expect("a parameter that says how many groups there are");
    assert!(counts.all(|n| n == groups), "the buffers do not agree on the number of groups");

    let mut args = vec![RawArg::Plain(kernel.value())];
    for (buf, desc) in bufs.iter().zip(&descs) {
        assert_eq!(buf.elem as u64, desc.elem);
        assert!(buf.writable || desc.access == Access::Read);
        args.push(RawArg::Buffer { at: buf.at, bytes: (buf.len * buf.elem) as u64, mapping: desc.mapping });
    }

    // Half of the launches have groups to spare, as where a device wants the grid rectangular: those must do nothing.
    let grid = groups as u32 + 2 * (seed % 2) as u32;
    let mut order: Vec<u32> = (0..grid).collect();
    let mut random = Random(seed);
    for i in (1..order.len()).rev() {
        order.swap(i, random.below(i + 1));
    }
    let form = kernel.code().rust.expect("a Rust form");
    for g in order {
        // SAFETY: the value first, then the buffers in order, each borrowed for its parameter's access, of elements of its size
        // (and so of its alignment: the tests' elements are numbers and arrays of them); one group at a time.
        unsafe { form(Group::nth(g, [grid, 1, 1]), &args) };
    }
}
