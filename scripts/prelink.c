// Resolves within shared libraries what the dynamic linker would resolve anew at each start.
//
//   prelink PROGRAM LIBRARY...
//
// PROGRAM and its libraries, in the order in which symbols are looked up in them. A relocation
// of a library against a symbol that the library itself defines, and nothing before it in that
// order, becomes a relative one, which costs no lookup: three quarters of libstdc++'s, which is
// linked so that all of its symbols can be replaced. The files are changed in place; PROGRAM is
// only read. Nothing else about the libraries changes, and they stay relocatable.
//
// Right only where these very files are loaded in this order: in kiln's engine folder.
#include <elf.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined __x86_64__
enum { ABSOLUTE = R_X86_64_64, DATA = R_X86_64_GLOB_DAT, CODE = R_X86_64_JUMP_SLOT,
       RELATIVE = R_X86_64_RELATIVE };
#elif defined __aarch64__
enum { ABSOLUTE = R_AARCH64_ABS64, DATA = R_AARCH64_GLOB_DAT, CODE = R_AARCH64_JUMP_SLOT,
       RELATIVE = R_AARCH64_RELATIVE };
#endif

struct object {
    char *file;
    Elf64_Sym *symbols;
    const char *names;
    unsigned symbol_count, relocation_count, slot_count;
    Elf64_Rela *relocations, *slots;
    int binds_at_start;
};

static void die(const char *path, const char *what) {
    fprintf(stderr, "prelink: %s: %s\n", path, what);
    exit(1);
}

// Where in the file the address is that the dynamic section gives.
static void *at(struct object *object, Elf64_Addr address) {
    Elf64_Ehdr *header = (void *)object->file;
    Elf64_Phdr *segment = (void *)(object->file + header->e_phoff);
    for (int i = 0; i < header->e_phnum; i++, segment++)
        if (segment->p_type == PT_LOAD && address - segment->p_vaddr < segment->p_filesz)
            return object->file + segment->p_offset + (address - segment->p_vaddr);
    return NULL;
}

// The highest symbol that the hash table lists: the table itself has no length.
static unsigned count_symbols(const Elf32_Word *hash) {
    Elf32_Word buckets = hash[0], first = hash[1], last = 0;
    const Elf32_Word *bucket = hash + 4 + hash[2] * 2, *chain = bucket + buckets;
    for (Elf32_Word i = 0; i < buckets; i++)
        if (bucket[i] > last)
            last = bucket[i];
    if (last < first)
        return first;
    while (!(chain[last - first] & 1))
        last++;
    return last + 1;
}

static struct object open_object(const char *path, int writable) {
    struct object object = {0};
    struct stat stat;
    int fd = open(path, writable ? O_RDWR : O_RDONLY);
    if (fd < 0 || fstat(fd, &stat) < 0)
        die(path, "cannot be opened");
    int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    object.file = mmap(NULL, stat.st_size, protection, MAP_SHARED, fd, 0);
    close(fd);
    if (object.file == MAP_FAILED || memcmp(object.file, ELFMAG, SELFMAG) != 0)
        die(path, "is no ELF file");

    Elf64_Ehdr *header = (void *)object.file;
    Elf64_Phdr *segment = (void *)(object.file + header->e_phoff);
    Elf64_Dyn *dynamic = NULL;
    for (int i = 0; i < header->e_phnum; i++)
        if (segment[i].p_type == PT_DYNAMIC)
            dynamic = (void *)(object.file + segment[i].p_offset);
    if (!dynamic)
        die(path, "is not dynamic");
    for (; dynamic->d_tag != DT_NULL; dynamic++) {
        Elf64_Xword value = dynamic->d_un.d_val;
        switch (dynamic->d_tag) {
        case DT_SYMTAB: object.symbols = at(&object, value); break;
        case DT_STRTAB: object.names = at(&object, value); break;
        case DT_GNU_HASH: object.symbol_count = count_symbols(at(&object, value)); break;
        case DT_RELA: object.relocations = at(&object, value); break;
        case DT_RELASZ: object.relocation_count = value / sizeof(Elf64_Rela); break;
        case DT_JMPREL: object.slots = at(&object, value); break;
        case DT_PLTRELSZ: object.slot_count = value / sizeof(Elf64_Rela); break;
        case DT_FLAGS: object.binds_at_start |= !!(value & DF_BIND_NOW); break;
        case DT_FLAGS_1: object.binds_at_start |= !!(value & DF_1_NOW); break;
        }
    }
    if (!object.symbols || !object.names || !object.symbol_count)
        die(path, "has no symbols with a GNU hash table");
    return object;
}

static int defines(const struct object *object, const char *name) {
    for (unsigned i = 1; i < object->symbol_count; i++)
        if (object->symbols[i].st_shndx != SHN_UNDEF &&
            strcmp(object->names + object->symbols[i].st_name, name) == 0)
            return 1;
    return 0;
}

static unsigned resolve(struct object *objects, int self, Elf64_Rela *relocation, unsigned count) {
    struct object *object = &objects[self];
    unsigned resolved = 0;
    for (; count; count--, relocation++) {
        unsigned type = ELF64_R_TYPE(relocation->r_info), index = ELF64_R_SYM(relocation->r_info);
        if (!index || (type != ABSOLUTE && type != DATA && type != CODE))
            continue;
        Elf64_Sym *symbol = &object->symbols[index];
        unsigned kind = ELF64_ST_TYPE(symbol->st_info);
        // An indirect function's address is its resolver's to say.
        if (symbol->st_shndx == SHN_UNDEF || symbol->st_shndx == SHN_ABS ||
            kind == STT_GNU_IFUNC || kind == STT_TLS)
            continue;
        int before = 0;
        for (int i = 0; i < self && !before; i++)
            before = defines(&objects[i], object->names + symbol->st_name);
        if (before)
            continue;
        // The addend counts for the first kind alone, as in the dynamic linker.
        relocation->r_addend = symbol->st_value + (type == ABSOLUTE ? relocation->r_addend : 0);
        relocation->r_info = ELF64_R_INFO(0, RELATIVE);
        resolved++;
    }
    return resolved;
}

int main(int count, char **paths) {
    if (count < 3)
        die("usage", "prelink PROGRAM LIBRARY...");
    struct object *objects = calloc(count, sizeof *objects);
    for (int i = 1; i < count; i++) {
        objects[i - 1] = open_object(paths[i], i > 1);
        if (i == 1)
            continue;
        struct object *object = &objects[i - 1];
        unsigned resolved = resolve(objects, i - 1, object->relocations, object->relocation_count);
        // Of a library that may bind lazily, the dynamic linker takes no others for slots.
        if (object->binds_at_start)
            resolved += resolve(objects, i - 1, object->slots, object->slot_count);
        if (resolved)
            printf("prelink: %s: %u relocations\n", paths[i], resolved);
    }
    return 0;
}
