//! A typed kernel, and the step from typed code to type-erased code.

use std::fmt;

use bytemuck::Pod;
use smallvec::SmallVec;

use super::group::InKernel;
use super::{Code, Group, Param, ParamDesc, Params, RawArg, Spirv, Takes};

/// Bytes that a kernel's plain value may have. Every group gets it by value; what is longer is a buffer, to be read
/// [whole](super::whole).
pub const MOST_VALUE: usize = 16 << 20;

/// Code for parameters `P` and a plain value `V`: `fn(Group, V, <item of each parameter>…)`.
///
/// Implemented for every `fn` item and capture-free closure of that shape, and sealed: nothing else is run.
pub trait Body<V, P: Params>: sealed::Run<V, P> {}

impl<V, P: Params, Fun: sealed::Run<V, P>> Body<V, P> for Fun {}

mod sealed {
    use super::{Group, Params, RawArg};

    pub trait Run<V, P: Params>: Copy + Send + Sync + 'static {
        /// Runs one group.
        ///
        /// # Safety
        /// As [`RustForm`](super::super::RustForm).
        unsafe fn run(&self, group: Group, args: &[RawArg<'_>]);
    }
}

macro_rules! body_for_functions {
    ($($p:ident $i:tt),*) => {
        impl<Fun, V, $($p),*> sealed::Run<V, ($($p,)*)> for Fun
        where
            V: Pod,
            $($p: Param,)*
            Fun: for<'g> Fn(Group, V, $($p::Item<'g>),*) + Copy + Send + Sync + 'static,
        {
            unsafe fn run(&self, group: Group, args: &[RawArg<'_>]) {
                let RawArg::Plain(value) = args[0] else { unreachable!("the plain value comes first") };
                self(group, bytemuck::pod_read_unaligned(value), $(
                    // SAFETY: the caller hands over this kernel's own arguments.
                    unsafe { $p::item(&args[$i + 1], group) }
                ),*);
            }
        }
    };
}
body_for_functions!(A 0);
body_for_functions!(A 0, B 1);
body_for_functions!(A 0, B 1, C 2);
body_for_functions!(A 0, B 1, C 2, D 3);
body_for_functions!(A 0, B 1, C 2, D 3, E 4);
body_for_functions!(A 0, B 1, C 2, D 3, E 4, F 5);
body_for_functions!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
body_for_functions!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);

/// The type-erased form of body `Fun`: a plain function, since `Fun` has no size and so no state. It marks the thread as a kernel's,
/// whichever backend calls it: nothing else can, and nothing can take the mark off before the group has ended.
///
/// # Safety
/// As [`RustForm`](super::RustForm).
unsafe fn erased<V: Pod, P: Params, Fun: Body<V, P>>(group: Group, args: &[RawArg<'_>]) {
    // SAFETY: `Fun` has size 0 and is Copy, and `Kernel::new` was handed a value of it: reading no bytes gives that value.
    let body = unsafe { std::ptr::NonNull::<Fun>::dangling().read() };
    let _mark = InKernel::enter();
    // SAFETY: the caller's.
    unsafe { body.run(group, args) }
}

fn takes<V: Pod, P: Params>(params: &P) -> Takes {
    let mut takes = Takes { value: size_of::<V>(), ..Takes::default() };
    for (place, p) in takes.buffers.iter_mut().zip(params.descs()) {
        // An element of 4 GiB is none that a compiled form could have.
        *place = Some((p.access, u32::try_from(p.elem).unwrap_or(u32::MAX)));
    }
    takes
}

/// A kernel with its plain value, ready to be launched with buffers that fit the parameters `P`.
#[derive(Clone)]
pub struct Kernel<P> {
    code: Code,
    value: SmallVec<[u8; 32]>,
    params: P,
    grid: Option<[u32; 3]>,
}

impl<P: Params> Kernel<P> {
    /// A kernel called `name` that hands `value` to every group and runs `body`.
    ///
    /// `value` is one [`Pod`]: a number, `()`, or a `#[repr(C)]` struct of several, of at most [`MOST_VALUE`] bytes. The body must be an `fn` item or a closure
    /// that captures nothing; one that captures does not compile.
    pub fn new<V: Pod, Fun: Body<V, P>>(name: &'static str, value: V, params: P, body: Fun) -> Self {
        const { assert!(size_of::<Fun>() == 0, "a kernel's body captures nothing: pass values through `value`") };
        let _ = body;
        Self {
            code: Code { name, rust: Some(erased::<V, P, Fun>), spirv: None, takes: takes::<V, P>(&params) },
            value: SmallVec::from_slice(bytemuck::bytes_of(&value)),
            params,
            grid: None,
        }
    }

    /// A kernel that has only a SPIR-V form: one made for sterna, or one with descriptor bindings as other Vulkan programs use it.
    /// [`spirv`](super::spirv) says how each gets its arguments.
    ///
    /// A device looks through the module when the kernel is first launched there. It refuses, as
    /// [`BadKernel`](crate::DeviceError::BadKernel), what is no compute module, asks for what the device lacks, or has bindings,
    /// accesses, push constants or specialisation constants that do not fit this declaration.
    ///
    /// # Safety
    /// As [`with_spirv`](Self::with_spirv), but for the Rust form.
    pub unsafe fn from_spirv<V: Pod>(name: &'static str, value: V, params: P, form: Spirv) -> Self {
        Self {
            code: Code { name, rust: None, spirv: Some(form), takes: takes::<V, P>(&params) },
            value: SmallVec::from_slice(bytemuck::bytes_of(&value)),
            params,
            grid: None,
        }
    }

    /// The kernel with a SPIR-V form beside its Rust form, for Vulkan devices.
    ///
    /// # Safety
    /// The module takes its arguments as [`spirv`](super::spirv) says and computes what the Rust form computes. Whatever the
    /// lengths of the buffers and whatever they hold, each group accesses only what its parameters give it (inside the buffers,
    /// its own part of what is replaced or changed, atomically where it is scattered), and it ends.
    #[must_use]
    pub unsafe fn with_spirv(mut self, form: Spirv) -> Self {
        self.code.spirv = Some(form);
        self
    }

    /// Runs `groups` workgroups. Needed only by kernels without a parameter of kind `each`, `rows` or `halo`, whose number of
    /// groups otherwise follows from the buffers' length.
    #[must_use]
    pub fn groups(self, groups: u32) -> Self {
        self.grid([groups, 1, 1])
    }

    /// Runs a grid of so many groups in x, y and z, for code that looks at its place in more than one direction ([`Group::id`],
    /// `gl_WorkGroupID`). Vulkan devices take up to 65535 in y and z.
    ///
    /// Groups are numbered with x running fastest: parameters of kind `each`, `rows` and `halo` give a group the part with its number
    /// ([`Group::index`]), and the grid must have as many groups as they make. What is written in tiles, which are no such
    /// parts, is a parameter of kind `scatter`.
    ///
    /// ```
    /// use std::sync::atomic::{AtomicU32, Ordering};
    /// use sterna_hal::kernel::{Group, Kernel, Scatter, Whole, scatter, whole};
    ///
    /// /// Group (x, y) moves a tile of 8 × 8 elements of a square with rows of `width`.
    /// fn transpose(group: Group, width: u32, from: &[u32], to: &[AtomicU32]) {
    ///     let [x, y, _] = group.id.map(|v| v as usize * 8);
    ///     let width = width as usize;
    ///     for (i, j) in (0..8).flat_map(|i| (0..8).map(move |j| (x + i, y + j))) {
    ///         to[i * width + j].store(from[j * width + i], Ordering::Relaxed);
    ///     }
    /// }
    /// let kernel: Kernel<(Whole<u32>, Scatter<u32>)> =
    ///     Kernel::new("transpose", 64_u32, (whole(), scatter()), transpose).grid([64 / 8, 64 / 8, 1]);
    /// assert_eq!(kernel.explicit_grid(), Some([8, 8, 1]));
    /// ```
    #[must_use]
    pub fn grid(mut self, grid: [u32; 3]) -> Self {
        self.grid = Some(grid);
        self
    }

    /// The kernel's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.code.name
    }

    /// The code in all its forms.
    #[must_use]
    pub fn code(&self) -> &Code {
        &self.code
    }

    /// The plain value's bytes.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// What is known of each buffer parameter, in order.
    #[must_use]
    pub fn params(&self) -> SmallVec<[ParamDesc; 8]> {
        self.params.descs()
    }

    /// The grid that was asked for explicitly.
    #[must_use]
    pub fn explicit_grid(&self) -> Option<[u32; 3]> {
        self.grid
    }
}

impl<P: Params> fmt::Debug for Kernel<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("name", &self.code.name).field("params", &self.params).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{HaloPart, each_mut, halo, scatter};
    use super::*;
    use std::ptr::NonNull;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn sum3(_: Group, scale: u32, x: HaloPart<'_, u32>, y: &mut [u32], total: &[AtomicU32]) {
        for (i, o) in x.own().zip(y.iter_mut()) {
            let at = |j: Option<usize>| j.and_then(|j| x.get(j)).copied().unwrap_or(0);
            *o = scale * (at(i.checked_sub(1)) + x[i] + at(i.checked_add(1)));
            total[0].fetch_add(*o, Ordering::Relaxed);
        }
    }

    #[test]
    fn erased_form_gives_each_group_its_part() {
        let k = Kernel::new("sum3", 2_u32, (halo(4, 1), each_mut(4), scatter::<u32>()), sum3);
        let descs = k.params();
        let (mut x, mut y, mut total) = ((1..=10).collect::<Vec<u32>>(), vec![0_u32; 10], vec![0_u32; 1]);
        let bufs = [x.as_mut_slice(), y.as_mut_slice(), total.as_mut_slice()]
            .map(|b| (NonNull::new(b.as_mut_ptr()).unwrap(), b.len()));
        let mut args = vec![RawArg::Plain(k.value())];
        args.extend(bufs.iter().zip(&descs).map(|((p, n), d)| RawArg::Buffer {
            at: p.cast(),
            bytes: *n as u64 * 4,
            mapping: d.mapping,
        }));
        for g in 0..3 {
            // SAFETY: the arguments fit, one group at a time.
            unsafe { (k.code().rust.unwrap())(Group::nth(g, [3, 1, 1]), &args) };
        }
        let expect: Vec<u32> =
            (1..=10_u32).map(|v| 2 * (v.saturating_sub(1) + v + if v < 10 { v + 1 } else { 0 })).collect();
        assert_eq!(y, expect);
        assert_eq!(total[0], expect.iter().sum::<u32>());
    }
}
