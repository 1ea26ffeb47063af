//! WasmEdge's C interface and the few system calls around it: all of this crate's `unsafe`.
//!
//! The bindings are wasmedge-sys, the lower half of wasmedge-sdk, and not the SDK itself: its
//! executor makes two rt_sigprocmask(2) calls around every host function (640 ns instead of 100
//! for a clock_time_get, compiled, a million calls), its configuration
//! lacks two of the finished proposals, and it leaks the copy it makes of a module it refuses.
//!
//! A wrapper here owns one WasmEdge object and frees it when it is dropped. Nothing is logged by
//! WasmEdge unless [`log_errors`] says so, and no thread is started.
#![allow(unsafe_code)]

pub mod process;

use std::ffi::{CStr, CString, c_char};
use std::ptr::{self, NonNull};

use kiln_wasm::proposals::Proposal;
use wasmedge_sys::ffi;

/// The name under which a module imports the functions of WASI.
pub const WASI: &str = "wasi_snapshot_preview1";

/// A page of a guest's memory, in bytes.
const PAGE: u64 = 64 << 10;
/// As many as addresses of 32 bits reach.
const MAX_PAGES: u32 = 1 << 16;

/// What WasmEdge says of a failure, such as `out of bounds memory access`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    message: &'static str,
    code: u32,
}

impl Failure {
    /// Whether the guest ended itself, by `proc_exit`.
    fn is_exit(self) -> bool {
        self.code == ffi::WasmEdge_ErrCode_Terminated
    }
}

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// `proc_exit`, or zero if `_start` returned.
    Exit(u32),
    /// The instance trapped, in its start section, its segments or `_start`.
    Trap(Failure),
}

/// WasmEdge's name of a proposal, or `None` if it knows none or cannot run it.
pub fn proposal(proposal: Proposal) -> Option<ffi::WasmEdge_Proposal> {
    match proposal {
        Proposal::TailCall => Some(ffi::WasmEdge_Proposal_TailCall),
        Proposal::ExtendedConst => Some(ffi::WasmEdge_Proposal_ExtendedConst),
        Proposal::MultiMemory => Some(ffi::WasmEdge_Proposal_MultiMemories),
        Proposal::Threads => Some(ffi::WasmEdge_Proposal_Threads),
        Proposal::RelaxedSimd => Some(ffi::WasmEdge_Proposal_RelaxSIMD),
        Proposal::FunctionReferences => Some(ffi::WasmEdge_Proposal_FunctionReferences),
        Proposal::GarbageCollection => Some(ffi::WasmEdge_Proposal_GC),
        Proposal::ExceptionHandling => Some(ffi::WasmEdge_Proposal_ExceptionHandling),
        // 0.14 has a switch for it, but not the proposal.
        _ => None,
    }
}

/// Settings of a [`Module`] and of its run.
#[derive(Debug)]
pub struct Config(NonNull<ffi::WasmEdge_ConfigureContext>);

impl Config {
    /// The proposals that are part of WebAssembly 2.0, and `proposals` besides. Native code is
    /// run only if `native` is set, wherever it comes from.
    pub fn new(proposals: &[ffi::WasmEdge_Proposal], native: bool) -> Self {
        // SAFETY: takes nothing; the result is checked.
        let config = Config(owned(unsafe { ffi::WasmEdge_ConfigureCreate() }));
        for &proposal in proposals {
            // SAFETY: the configuration is alive, and the value one of its enumeration's.
            unsafe { ffi::WasmEdge_ConfigureAddProposal(config.0.as_ptr(), proposal) };
        }
        // SAFETY: the configuration is alive.
        unsafe { ffi::WasmEdge_ConfigureSetForceInterpreter(config.0.as_ptr(), !native) };
        config
    }

    /// Bounds the memory of every instance that is made with it, in bytes; whole pages count.
    pub fn limit_memory(&mut self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX).min(MAX_PAGES);
        // SAFETY: the configuration is alive.
        unsafe { ffi::WasmEdge_ConfigureSetMaxMemoryPage(self.0.as_ptr(), pages) };
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: made by WasmEdge, owned by self, and copied by whatever was made with it.
        unsafe { ffi::WasmEdge_ConfigureDelete(self.0.as_ptr()) }
    }
}

/// A module that was parsed and validated. It has no memory and has run nothing.
#[derive(Debug)]
pub struct Module(NonNull<ffi::WasmEdge_ASTModuleContext>);

impl Module {
    /// Parses and validates `bytes`, which begin with the wasm magic: WasmEdge would load an
    /// ELF file as well.
    pub fn from_bytes(config: &Config, bytes: &[u8]) -> Result<Self, Failure> {
        let length = u32::try_from(bytes.len())
            .map_err(|_| Failure { message: "more than 4 GiB long", code: u32::MAX })?;
        Self::load(config, |loader, module| {
            // SAFETY: the loader and the out pointer are alive, and the buffer is read during
            // the call alone.
            unsafe { ffi::WasmEdge_LoaderParseFromBuffer(loader, module, bytes.as_ptr(), length) }
        })
    }

    /// Loads compiled code from the shared object `path`. This is dlopen(3): whoever can write
    /// the file runs code in this process.
    pub fn from_shared_object(config: &Config, path: &CStr) -> Result<Self, Failure> {
        Self::load(config, |loader, module| {
            // SAFETY: the loader, the out pointer and the string outlive the call.
            unsafe { ffi::WasmEdge_LoaderParseFromFile(loader, module, path.as_ptr()) }
        })
    }

    fn load(
        config: &Config,
        parse: impl FnOnce(
            *mut ffi::WasmEdge_LoaderContext,
            *mut *mut ffi::WasmEdge_ASTModuleContext,
        ) -> ffi::WasmEdge_Result,
    ) -> Result<Self, Failure> {
        let mut module = ptr::null_mut();
        // SAFETY: the configuration is alive; loader and validator live until they are deleted
        // below, on every path.
        unsafe {
            let loader = owned(ffi::WasmEdge_LoaderCreate(config.0.as_ptr())).as_ptr();
            let parsed = check(parse(loader, &mut module));
            ffi::WasmEdge_LoaderDelete(loader);
            parsed?;
            let module = Module(owned(module));
            let validator = owned(ffi::WasmEdge_ValidatorCreate(config.0.as_ptr())).as_ptr();
            let valid = check(ffi::WasmEdge_ValidatorValidate(validator, module.0.as_ptr()));
            ffi::WasmEdge_ValidatorDelete(validator);
            valid.map(|()| module)
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: made by WasmEdge and owned by self; instances do not outlive Guest::run.
        unsafe { ffi::WasmEdge_ASTModuleDelete(self.0.as_ptr()) }
    }
}

/// WASI, as a guest will import it.
#[derive(Debug)]
pub struct Wasi(NonNull<ffi::WasmEdge_ModuleInstanceContext>);

impl Default for Wasi {
    /// Without arguments, environment or directories: [`Wasi::provide`] gives them.
    fn default() -> Self {
        let none = ptr::null();
        // SAFETY: lists of length zero are not read.
        Wasi(owned(unsafe { ffi::WasmEdge_ModuleInstanceCreateWASI(none, 0, none, 0, none, 0) }))
    }
}

impl Wasi {
    /// Whether there is a function of this name.
    pub fn provides(&self, function: &str) -> bool {
        // SAFETY: the instance is alive; the string is read during the call alone.
        !unsafe { ffi::WasmEdge_ModuleInstanceFindFunction(self.0.as_ptr(), string(function)) }
            .is_null()
    }

    /// The first function that `module` imports from here with other parameters or results
    /// than it has.
    pub fn mismatch(&self, module: &Module) -> Option<String> {
        let module = module.0.as_ptr();
        // SAFETY: the module is alive, and what is taken from it lives as long; the list has
        // room for as many as are written to it.
        unsafe {
            let count = ffi::WasmEdge_ASTModuleListImportsLength(module);
            let mut imports = vec![ptr::null(); count as usize];
            ffi::WasmEdge_ASTModuleListImports(module, imports.as_mut_ptr(), count);
            imports.into_iter().find_map(|import| {
                let wanted = ffi::WasmEdge_ImportTypeGetFunctionType(module, import);
                let name = ffi::WasmEdge_ImportTypeGetExternalName(import);
                let function = ffi::WasmEdge_ModuleInstanceFindFunction(self.0.as_ptr(), name);
                let given = ffi::WasmEdge_FunctionInstanceGetFunctionType(function);
                if !wanted.is_null() && !given.is_null() && same_type(wanted, given) {
                    return None;
                }
                let bytes = std::slice::from_raw_parts(name.Buf.cast(), name.Length as usize);
                Some(format!("{WASI}.{}", String::from_utf8_lossy(bytes)))
            })
        }
    }

    /// Sets up what the guest sees and opens its directories, written `GUEST:HOST`. They become
    /// the guest's descriptors from 3 on, in this order, if all of them can be opened.
    pub fn provide(&mut self, args: &[CString], env: &[CString], preopens: &[CString]) {
        // WasmEdge sorts the directories by where in memory it keeps them, which is the order of
        // their making only where the heap has no holes. Each attempt fills some.
        let mut attempts = Vec::new();
        while attempts.len() < 100 {
            self.init(args, env, preopens);
            if self.in_order(preopens.len()) {
                break;
            }
            attempts.push(std::mem::take(self));
        }
    }

    fn init(&mut self, args: &[CString], env: &[CString], preopens: &[CString]) {
        let [args, env, preopens] = [args, env, preopens]
            .map(|list| list.iter().map(|s| s.as_ptr()).collect::<Vec<*const c_char>>());
        // SAFETY: the instance is alive, and the lists and strings outlive the call, which
        // copies them.
        unsafe {
            ffi::WasmEdge_ModuleInstanceInitWASI(
                self.0.as_ptr(),
                args.as_ptr(),
                args.len() as u32,
                env.as_ptr(),
                env.len() as u32,
                preopens.as_ptr(),
                preopens.len() as u32,
            );
        }
    }

    /// Whether the guest's directories were opened in the order of their descriptors: the
    /// kernel gives the lowest number that is free, so ours grow as they were opened.
    fn in_order(&self, count: usize) -> bool {
        let opened =
            (3..).take(count).map(|descriptor| self.native(descriptor).unwrap_or(u64::MAX));
        opened.is_sorted()
    }

    /// Our descriptor for one of the guest's.
    fn native(&self, descriptor: i32) -> Option<u64> {
        let mut ours = 0;
        // SAFETY: the instance is alive and a WASI one; the result is written on success.
        let code = unsafe {
            let instance = self.0.as_ptr();
            ffi::WasmEdge_ModuleInstanceWASIGetNativeHandler(instance, descriptor, &mut ours)
        };
        (code == 0).then_some(ours)
    }

    /// Other arguments and another environment, and nothing else that is new.
    pub fn set_call(&mut self, args: &[CString], env: &[CString]) {
        self.init(args, env, &[]);
    }

    /// How a guest that has this ended, where `result` is what it returned.
    fn ending(&self, result: Result<Option<u32>, Failure>) -> Ending {
        match result {
            Ok(status) => Ending::Exit(status.unwrap_or(0)),
            Err(failure) if failure.is_exit() => Ending::Exit(self.exit_code()),
            Err(failure) => Ending::Trap(failure),
        }
    }

    fn exit_code(&self) -> u32 {
        // SAFETY: the instance is alive, and a WASI one.
        unsafe { ffi::WasmEdge_ModuleInstanceWASIGetExitCode(self.0.as_ptr()) }
    }
}

impl Drop for Wasi {
    fn drop(&mut self) {
        // SAFETY: made by WasmEdge and owned by self.
        unsafe { ffi::WasmEdge_ModuleInstanceDelete(self.0.as_ptr()) }
    }
}

/// What an instance of a module needs around it: an executor, and WASI, by name.
#[derive(Debug)]
pub struct Host {
    // In the order in which they are freed.
    store: NonNull<ffi::WasmEdge_StoreContext>,
    executor: NonNull<ffi::WasmEdge_ExecutorContext>,
    wasi: Wasi,
}

impl Host {
    /// For modules that were made with this configuration.
    pub fn new(config: &Config, wasi: Wasi) -> Self {
        // SAFETY: every object is alive until it is deleted by drop, store before executor; WASI
        // outlives both. Its name is not taken in a store that is empty.
        unsafe {
            let executor = owned(ffi::WasmEdge_ExecutorCreate(config.0.as_ptr(), ptr::null_mut()));
            let store = owned(ffi::WasmEdge_StoreCreate());
            let (executor_at, store_at) = (executor.as_ptr(), store.as_ptr());
            ffi::WasmEdge_ExecutorRegisterImport(executor_at, store_at, wasi.0.as_ptr());
            Host { store, executor, wasi }
        }
    }

    /// Whether the guest's standard streams and its `preopens` directories are as they were made.
    pub fn is_intact(&self, preopens: usize) -> bool {
        let streams =
            (0..3).all(|stream| self.wasi.native(stream) == Some(stream.unsigned_abs().into()));
        streams && (3..).take(preopens).all(|directory| self.wasi.native(directory).is_some())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: made by WasmEdge and owned by self. The WASI instance, a field, goes after them.
        unsafe {
            ffi::WasmEdge_StoreDelete(self.store.as_ptr());
            ffi::WasmEdge_ExecutorDelete(self.executor.as_ptr());
        }
    }
}

/// An instance of a module: its memory, globals and tables, and what it imports.
#[derive(Debug)]
pub struct Instance {
    instance: Handle,
    host: Host,
}

/// Freed before the host is.
#[derive(Debug)]
struct Handle(NonNull<ffi::WasmEdge_ModuleInstanceContext>);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by WasmEdge and owned by self.
        unsafe { ffi::WasmEdge_ModuleInstanceDelete(self.0.as_ptr()) }
    }
}

impl Instance {
    /// Makes one, which runs the module's start section if it has any. The module may be gone before
    /// it is: WasmEdge copies what it keeps.
    ///
    /// # Errors
    /// A guest that has ended already, one way or another.
    pub fn new(module: &Module, host: Host) -> Result<Self, Ending> {
        let mut instance = ptr::null_mut();
        let (executor, store) = (host.executor.as_ptr(), host.store.as_ptr());
        // SAFETY: all objects are alive, and the instance is freed before them.
        let made = check(unsafe {
            let module = module.0.as_ptr();
            ffi::WasmEdge_ExecutorInstantiate(executor, &mut instance, store, module)
        });
        match (made, NonNull::new(instance)) {
            (Ok(()), Some(instance)) => Ok(Instance { instance: Handle(instance), host }),
            (made, _) => Err(host.wasi.ending(made.map(|()| None))),
        }
    }

    /// Calls an exported function that takes nothing; what it returns, if that is a 32-bit integer,
    /// is the exit status. Blocks until the guest has ended or the function has returned.
    pub fn call(&mut self, function: &str) -> Ending {
        // SAFETY: all objects are alive; the list of results has room for what the function's type
        // says, and a null function is refused with an error.
        let result = unsafe {
            let instance = self.instance.0.as_ptr();
            let function = ffi::WasmEdge_ModuleInstanceFindFunction(instance, string(function));
            let count = match function.is_null() {
                true => 0,
                false => ffi::WasmEdge_FunctionTypeGetReturnsLength(
                    ffi::WasmEdge_FunctionInstanceGetFunctionType(function),
                ),
            };
            let mut results = vec![ffi::WasmEdge_ValueGenI32(0); count as usize];
            let (none, out) = (ptr::null(), results.as_mut_ptr());
            let executor = self.host.executor.as_ptr();
            check(ffi::WasmEdge_ExecutorInvoke(executor, function, none, 0, out, count)).map(|()| {
                let first = results.first().copied();
                first
                    .filter(|value| ffi::WasmEdge_ValTypeIsI32(value.Type))
                    .map(|value| ffi::WasmEdge_ValueGetI32(value).cast_unsigned())
            })
        };
        self.host.wasi.ending(result)
    }

    /// What its guest sees of the world.
    pub fn wasi(&mut self) -> &mut Wasi {
        &mut self.host.wasi
    }

    /// Frees it, but not what it had around it.
    pub fn into_host(self) -> Host {
        self.host
    }
}

/// Compiles `bytes` to a shared object at `output`, which [`Module::from_shared_object`] loads.
/// Needs the real libLLVM: with the stand-in the process ends. Takes seconds for large modules.
pub fn compile(config: &Config, bytes: &[u8], output: &CStr) -> Result<(), Failure> {
    compile_as(ffi::WasmEdge_CompilerOutputFormat_Native, config, bytes, output)
}

/// As [`compile`], but to a module with the native code in a custom section.
#[cfg(test)]
pub fn compile_into_section(config: &Config, bytes: &[u8], output: &CStr) -> Result<(), Failure> {
    compile_as(ffi::WasmEdge_CompilerOutputFormat_Wasm, config, bytes, output)
}

fn compile_as(
    format: ffi::WasmEdge_CompilerOutputFormat,
    config: &Config,
    bytes: &[u8],
    output: &CStr,
) -> Result<(), Failure> {
    // Tests run side by side, and two compilers in one process have crashed.
    #[cfg(test)]
    let _alone = tests_alone();
    let level = ffi::WasmEdge_CompilerOptimizationLevel_O2;
    let (bytes, length) = (bytes.as_ptr(), bytes.len() as u64);
    // SAFETY: the configuration is alive, buffer and string are read during the call alone, and
    // the compiler is deleted once.
    unsafe {
        let config = config.0.as_ptr();
        ffi::WasmEdge_ConfigureCompilerSetOutputFormat(config, format);
        ffi::WasmEdge_ConfigureCompilerSetOptimizationLevel(config, level);
        let compiler = owned(ffi::WasmEdge_CompilerCreate(config)).as_ptr();
        let result =
            ffi::WasmEdge_CompilerCompileFromBuffer(compiler, bytes, length, output.as_ptr());
        ffi::WasmEdge_CompilerDelete(compiler);
        check(result)
    }
}

#[cfg(test)]
fn tests_alone() -> std::sync::MutexGuard<'static, ()> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Whether WasmEdge writes what goes wrong to stdout itself. It does until it is told not to.
pub fn log_errors(on: bool) {
    // SAFETY: both set a level that is kept in an atomic.
    unsafe { if on { ffi::WasmEdge_LogSetErrorLevel() } else { ffi::WasmEdge_LogOff() } }
}

/// WasmEdge's version, such as `0.14.1`.
pub fn version() -> &'static str {
    // SAFETY: a constant string of the library's.
    unsafe { CStr::from_ptr(ffi::WasmEdge_VersionGet()) }.to_str().unwrap_or("unknown")
}

fn check(result: ffi::WasmEdge_Result) -> Result<(), Failure> {
    // SAFETY: the three take the value alone; the message is a constant string.
    unsafe {
        let code = ffi::WasmEdge_ResultGetCode(result);
        if code == ffi::WasmEdge_ErrCode_Success {
            return Ok(());
        }
        let message = CStr::from_ptr(ffi::WasmEdge_ResultGetMessage(result));
        Err(Failure { message: message.to_str().unwrap_or("unknown error"), code })
    }
}

/// # Safety
/// Both types are alive.
unsafe fn same_type(
    one: *const ffi::WasmEdge_FunctionTypeContext,
    other: *const ffi::WasmEdge_FunctionTypeContext,
) -> bool {
    type List = unsafe extern "C" fn(
        *const ffi::WasmEdge_FunctionTypeContext,
        *mut ffi::WasmEdge_ValType,
        u32,
    ) -> u32;
    let lists: [List; 2] =
        [ffi::WasmEdge_FunctionTypeGetParameters, ffi::WasmEdge_FunctionTypeGetReturns];
    lists.into_iter().all(|list| {
        let types = |of| {
            let mut types = [ffi::WasmEdge_ValType { Data: [0; 8] }; 16];
            // SAFETY: no more is written than there is room for. The result is the whole count.
            let count = unsafe { list(of, types.as_mut_ptr(), types.len() as u32) };
            (count, types)
        };
        let ((count, one), (other_count, other)) = (types(one), types(other));
        // No function of WASI takes that many.
        count == other_count
            && count as usize <= one.len()
            && one.iter().zip(&other).take(count as usize).all(|(one, other)| {
                // SAFETY: takes the two values alone.
                unsafe { ffi::WasmEdge_ValTypeIsEqual(*one, *other) }
            })
    })
}

/// A string that WasmEdge reads during the call alone.
fn string(text: &str) -> ffi::WasmEdge_String {
    // SAFETY: the wrapped pointer is the caller's for as long as `text` is.
    unsafe { ffi::WasmEdge_StringWrap(text.as_ptr().cast(), text.len() as u32) }
}

/// What WasmEdge has made. It returns null only if it is out of memory, which C++ reports by
/// ending the process.
fn owned<T>(object: *mut T) -> NonNull<T> {
    NonNull::new(object).unwrap_or_else(|| std::process::abort())
}
