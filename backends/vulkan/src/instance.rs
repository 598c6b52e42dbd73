//! The loader and the instance.
//!
//! **Guarantee:** the loader is opened when somebody asks for it and not before; a machine without one gets
//! [`NoLoader`](VulkanError::NoLoader). Devices of one process share an instance while any of them exists, except those whose kernels
//! stop at absent pages: each has one of its own. Software drivers have one set of worker threads an instance, and a thread that
//! waits for a page is not there for another device, whose kernels may be what the page waits for.
//!
//! **Validation.** With `STERNA_VULKAN_VALIDATION` set, the Khronos layer is loaded, and its first error message ends the process:
//! the way to make every test a test of correct use. The value is `1`; behind it, separated by commas, may stand the identifiers
//! of messages that are known to be false on the driver at hand. `0` and `off` switch it off. **Lock:** `SHARED`, around making the instance.

use std::ffi::{CStr, c_void};
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, OnceLock, Weak};

use ash::{ext, vk};
use parking_lot::Mutex;
use sterna_host::fork::Origin;
use sterna_host::limits;

use crate::error::{VulkanError, opening};

const VALIDATION: &CStr = c"VK_LAYER_KHRONOS_validation";

/// A loaded Vulkan with an instance.
pub(crate) struct Instance {
    pub(crate) raw: ash::Instance,
    messenger: Option<(ext::debug_utils::Instance, vk::DebugUtilsMessengerEXT)>,
    /// Keeps the library loaded.
    _entry: ash::Entry,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Instance")
    }
}

/// The messages that end nothing: set once, before the layer is loaded.
static KNOWN: OnceLock<Vec<String>> = OnceLock::new();

/// The process that asked for one first.
static FIRST: OnceLock<Origin> = OnceLock::new();

static SHARED: Mutex<Weak<Instance>> = Mutex::new(Weak::new());

impl Instance {
    /// The process's instance, made if nobody has it now.
    pub(crate) fn shared() -> Result<Arc<Self>, VulkanError> {
        // The driver's threads stay with the parent: what it still knows of them would be waited for.
        FIRST.get_or_init(Origin::here).check()?;
        let mut shared = SHARED.lock();
        if let Some(there) = shared.upgrade() {
            return Ok(there);
        }
        let made = Self::make()?;
        *shared = Arc::downgrade(&made);
        Ok(made)
    }

    /// An instance that nobody else has or will get: this one, if the caller alone has it, or a new one.
    pub(crate) fn alone(self: &Arc<Self>) -> Result<Arc<Self>, VulkanError> {
        let mut shared = SHARED.lock();
        if Arc::strong_count(self) > 1 {
            return Self::make();
        }
        *shared = Weak::new();
        Ok(Arc::clone(self))
    }

    fn make() -> Result<Arc<Self>, VulkanError> {
        let known = std::env::var_os("STERNA_VULKAN_VALIDATION").map_or(Ok(None), |v| validation(&v.to_string_lossy()))?;
        let validate = known.is_some();
        KNOWN.get_or_init(|| known.unwrap_or_default());
        Ok(Arc::new(Self::new(validate)?))
    }

    fn new(validate: bool) -> Result<Self, VulkanError> {
        // The C library of such a program cannot take the driver's own along with it, and dies in the attempt.
        if cfg!(all(target_env = "gnu", target_feature = "crt-static")) {
            let why = "this program is linked statically with glibc, which cannot load drivers".into();
            return Err(VulkanError::NoLoader { why, remedy: "link it dynamically" });
        }
        // Seen with lavapipe 22: with up to 88 MiB it ends the process, or throws what no Rust program can catch.
        if let Some(remedy) = limits::data_lacking(92 << 20) {
            let what = "a Vulkan driver ends the process where it may not have 92 MiB of memory".into();
            return Err(VulkanError::Limits { what, remedy });
        }
        // SAFETY: loads the system's Vulkan library, whose initialisation is trusted.
        let entry = unsafe { ash::Entry::load() }.map_err(|e| {
            // It has no code, and its text is for people.
            let full = File::open("/").is_err_and(|e| e.raw_os_error() == Some(libc::EMFILE));
            let remedy = if full { "raise `ulimit -n`" } else { "install it (Debian: libvulkan1)" };
            VulkanError::NoLoader { why: e.to_string(), remedy }
        })?;
        // SAFETY: the loader is there.
        let version = unsafe { entry.try_enumerate_instance_version() }.ok().flatten().unwrap_or(vk::API_VERSION_1_0);
        if version < vk::API_VERSION_1_1 {
            let why = "it is older than Vulkan 1.1".into();
            return Err(VulkanError::NoLoader { why, remedy: "install a newer one (Debian: libvulkan1)" });
        }
        let app = vk::ApplicationInfo::default().engine_name(c"sterna").api_version(vk::API_VERSION_1_3);
        let mut message = vk::DebugUtilsMessengerCreateInfoEXT::default()
            .message_severity(vk::DebugUtilsMessageSeverityFlagsEXT::ERROR)
            .message_type(vk::DebugUtilsMessageTypeFlagsEXT::GENERAL | vk::DebugUtilsMessageTypeFlagsEXT::VALIDATION)
            .pfn_user_callback(Some(on_message));
        let (layers, extensions) = ([VALIDATION.as_ptr()], [ext::debug_utils::NAME.as_ptr()]);
        let sync = [vk::ValidationFeatureEnableEXT::SYNCHRONIZATION_VALIDATION];
        let mut checks = vk::ValidationFeaturesEXT::default().enabled_validation_features(&sync);
        let mut info = vk::InstanceCreateInfo::default().application_info(&app);
        if validate {
            // The messenger is chained here too, so that it hears of what is left over when the instance is destroyed.
            info = info.enabled_layer_names(&layers).enabled_extension_names(&extensions);
            info = info.push_next(&mut message).push_next(&mut checks);
        }
        // SAFETY: everything that the structures point to is alive.
        let raw = unsafe { entry.create_instance(&info, None) }.map_err(no_driver("vkCreateInstance"))?;
        let mut this = Self { raw, messenger: None, _entry: entry };
        if validate {
            let utils = ext::debug_utils::Instance::new(&this._entry, &this.raw);
            message.p_next = std::ptr::null();
            // SAFETY: the extension is enabled; the callback is a function.
            let made = unsafe { utils.create_debug_utils_messenger(&message, None) };
            this.messenger = Some((utils, made.map_err(opening("vkCreateDebugUtilsMessengerEXT"))?));
        }
        Ok(this)
    }
}

/// What `STERNA_VULKAN_VALIDATION` says: whether to validate, and which messages end nothing.
fn validation(value: &str) -> Result<Option<Vec<String>>, VulkanError> {
    let mut parts = value.split(',').map(str::trim);
    match (parts.next().unwrap_or_default(), value.contains(',')) {
        ("" | "0" | "off", false) => Ok(None),
        ("1", _) => Ok(Some(parts.map(String::from).collect())),
        _ => Err(VulkanError::Settings(format!(
            "STERNA_VULKAN_VALIDATION is `{value}`; it is `1`, or `1,` and identifiers of messages, or `0` or `off`"
        ))),
    }
}

/// That no driver works, and why: a wrong path in the environment is the usual reason.
pub(crate) fn without_driver(why: &str) -> VulkanError {
    let named = |name: &&str| std::env::var_os(name).map(|value| format!(" ({name} names `{}`)", value.display()));
    let named = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].iter().find_map(named).unwrap_or_default();
    VulkanError::NoDriver(format!("{named}: {why}"))
}

/// A call of the loader that failed before any device was found. Its code may be any of several for a broken driver: a
/// description of one that is cut off is `ERROR_OUT_OF_HOST_MEMORY`.
pub(crate) fn no_driver(call: &'static str) -> impl Fn(vk::Result) -> VulkanError {
    move |code| match code {
        vk::Result::ERROR_LAYER_NOT_PRESENT | vk::Result::ERROR_EXTENSION_NOT_PRESENT => opening(call)(code),
        code => without_driver(&format!("{call} says \"{code}\"")),
    }
}

unsafe extern "system" fn on_message(
    _severity: vk::DebugUtilsMessageSeverityFlagsEXT,
    _kind: vk::DebugUtilsMessageTypeFlagsEXT,
    data: *const vk::DebugUtilsMessengerCallbackDataEXT<'_>,
    _user: *mut c_void,
) -> vk::Bool32 {
    // SAFETY: the layer hands over a valid structure whose texts are C strings or null.
    let [id, text] = unsafe { [(*data).p_message_id_name, (*data).p_message] }.map(|text| {
        // SAFETY: as above.
        if text.is_null() { String::new() } else { unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned() }
    });
    if KNOWN.get().is_some_and(|known| known.contains(&id)) {
        return vk::FALSE;
    }
    // The loader reports drivers that it cannot load in the same way; those are no defect of this program.
    if text.contains("VUID-") || text.contains("SYNC-") || text.contains("UNASSIGNED-") {
        // Not by a macro: test harnesses capture what those print, and the process ends before they show it.
        let _ = writeln!(std::io::stderr(), "sterna: Vulkan validation: {text}");
        std::process::abort();
    }
    vk::FALSE
}

impl Drop for Instance {
    fn drop(&mut self) {
        // SAFETY: whoever uses the instance keeps it alive, so nothing made from it is left.
        unsafe {
            if let Some((utils, messenger)) = self.messenger.take() {
                utils.destroy_debug_utils_messenger(messenger, None);
            }
            self.raw.destroy_instance(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validation_is_on_off_or_refused() {
        for off in ["", "0", "off", " off "] {
            assert!(matches!(validation(off), Ok(None)), "{off}");
        }
        assert_eq!(validation("1").unwrap(), Some(vec![]));
        assert_eq!(validation("1, VUID-a,VUID-b").unwrap(), Some(vec!["VUID-a".to_owned(), "VUID-b".to_owned()]));
        for wrong in ["on", "yes", "2", "VUID-a", "0,VUID-a", "off,1"] {
            assert!(validation(wrong).is_err_and(|e| e.to_string().contains(wrong)), "{wrong}");
        }
    }
}
