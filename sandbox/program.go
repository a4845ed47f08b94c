package sandbox

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	// maxString is execve(2)'s limit for one argument or variable: MAX_ARG_STRLEN, 32 pages.
	maxString = 32 * 4096
	// maxStrings is that for all: a quarter of the stack that programs may use, which is 8 MiB unless somebody has changed it.
	maxStrings = 2 << 20
	// maxFirstLine is how much of a script's first line the kernel reads (BINPRM_BUF_SIZE).
	maxFirstLine = 256
)

// checkProgram refuses a program that is not there or cannot be executed, before a runtime does so in words and an exit code of its own.
// What it passes may still fail. Volumes can bring programs, so with one nothing is refused.
func checkProgram(c Config, p *specs.Process) error {
	if err := checkLengths(p); err != nil {
		return err
	}
	if len(c.Volumes) > 0 {
		return nil
	}
	return findProgram(c.Root, p)
}

// whyNot says why the kernel did not execute a program.
func whyNot(root string, p *specs.Process) error {
	var known *startError
	if err := findProgram(root, p); errors.As(err, &known) && known.certain {
		return known
	}
	return &startError{text: fmt.Sprintf("%s: the kernel cannot execute it", p.Args[0]), code: codeNotExecutable}
}

// checkLengths refuses what execve(2) has no room for.
func checkLengths(p *specs.Process) error {
	total := 0
	for _, list := range [][]string{p.Args, p.Env} {
		for _, s := range list {
			total += len(s) + 1 + 8 // a NUL and a pointer
			if len(s) >= maxString {
				name, _, _ := strings.Cut(s[:min(len(s), 40)], "=")
				return &startError{text: fmt.Sprintf("%s: argument list too long: %q… has %d bytes, limit %d", p.Args[0], name, len(s), maxString-1), code: codeNotExecutable}
			}
		}
	}
	if total > maxStrings {
		return &startError{text: fmt.Sprintf("%s: argument list too long: %d bytes of arguments and variables, limit %d", p.Args[0], total, maxStrings), code: codeNotExecutable}
	}
	return nil
}

// findProgram looks for the program as a runtime does, and for what keeps the kernel from executing it.
func findProgram(root string, p *specs.Process) error {
	program := p.Args[0]
	folders := []string{p.Cwd}
	if !strings.Contains(program, "/") {
		i := environment(p.Env).index("PATH")
		if i < 0 {
			return nil // each runtime has a default of its own
		}
		folders = strings.Split(strings.TrimPrefix(p.Env[i], "PATH="), ":")
	}
	failed := &startError{text: fmt.Sprintf("%s: not found in the image", program), code: codeNotFound}
	for _, folder := range folders {
		name := program
		if !path.IsAbs(name) {
			name = path.Join("/", folder, program)
		}
		f, err := openInRoot(root, name, unix.O_PATH)
		if err != nil {
			continue
		}
		info, err := f.Stat()
		f.Close()
		switch {
		case err != nil:
		case info.Mode().IsRegular() && info.Mode()&0o111 != 0:
			return checkFormat(root, name, program)
		case info.IsDir():
			failed = &startError{text: fmt.Sprintf("%s: is a folder, not a program", program), code: codeNotExecutable}
		default:
			failed = &startError{text: fmt.Sprintf("%s: not an executable file", program), code: codeNotExecutable}
		}
	}
	return failed
}

// checkFormat refuses an executable file that is neither a program nor a script, or whose interpreter is not there. It reads what the
// kernel does. Where other formats are registered (binfmt_misc) it refuses none.
func checkFormat(root, name, program string) error {
	f, err := openInRoot(root, name, unix.O_RDONLY)
	if err != nil {
		return nil // the runtime will say it
	}
	defer f.Close()
	head, err := bufio.NewReaderSize(f, maxFirstLine).Peek(maxFirstLine)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: %w", program, err)
	}
	interpreter, format := "", error(nil)
	switch line, isScript := bytes.CutPrefix(head, []byte("#!")); {
	case isScript:
		line, _, _ = bytes.Cut(line, []byte("\n"))
		if words := strings.Fields(string(line)); len(words) > 0 {
			interpreter = words[0]
		}
	case bytes.HasPrefix(head, []byte(elf.ELFMAG)):
		interpreter, format = elfInterpreter(f, head)
	default:
		format = errors.New("neither a program nor a script that says by what it is run (#!)")
	}
	if others, _ := filepath.Glob("/proc/sys/fs/binfmt_misc/[!rs]*"); len(others) > 0 {
		return nil
	}
	if format != nil {
		return &startError{text: fmt.Sprintf("%s: exec format error: %v", program, format), code: codeNotExecutable, certain: true}
	}
	if !path.IsAbs(interpreter) {
		return nil
	}
	if f, err := openInRoot(root, interpreter, unix.O_PATH); errors.Is(err, os.ErrNotExist) {
		return &startError{text: fmt.Sprintf("%s: its interpreter %s is not in the image", program, interpreter), code: codeNotFound, certain: true}
	} else if err == nil {
		f.Close()
	}
	return nil
}

// elfInterpreter gives what loads a program's libraries, or "" if it needs none. It reads the header and the table of segments, elf(5),
// and no sections: those are at the end of the file, which may be far away.
func elfInterpreter(f io.ReaderAt, head []byte) (string, error) {
	errGarbage := errors.New("its ELF header is damaged")
	if len(head) < 64 {
		return "", errGarbage
	}
	le := binary.LittleEndian // as all machines that we run on are
	var start, size, count int64
	switch elf.Class(head[elf.EI_CLASS]) {
	case elf.ELFCLASS64:
		start, size, count = int64(le.Uint64(head[32:])), 56, int64(le.Uint16(head[56:]))
	case elf.ELFCLASS32:
		start, size, count = int64(le.Uint32(head[28:])), 32, int64(le.Uint16(head[44:]))
	default:
		return "", errGarbage
	}
	table := make([]byte, size*count)
	if _, err := f.ReadAt(table, start); err != nil || count == 0 {
		return "", errGarbage
	}
	for ; len(table) > 0; table = table[size:] {
		if elf.ProgType(le.Uint32(table)) != elf.PT_INTERP {
			continue
		}
		at, length := int64(le.Uint64(table[8:])), le.Uint64(table[32:])
		if size == 32 {
			at, length = int64(le.Uint32(table[4:])), uint64(le.Uint32(table[16:]))
		}
		text := make([]byte, min(length, 4096)) // PATH_MAX
		if _, err := f.ReadAt(text, at); err != nil {
			return "", errGarbage
		}
		return strings.TrimRight(string(text), "\x00"), nil
	}
	return "", nil
}
