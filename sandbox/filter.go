package sandbox

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Compiling the system call filter is half of a start with crun, and gives the same program each time. crun leaves the program in its
// state, and takes one from an annotation in the place of the filter; so the first start's is kept for those that follow. Other
// runtimes do not know the annotation and compile the filter, which is there as well.
const (
	filterKey     = "run.oci.seccomp_bpf_data" // crun's: the program in base64
	keepFilterKey = "thaw.filter"              // ours: where Start keeps the program if it is not there
	maxFilter     = 4096 * 8                   // bytes: the kernel's limit of instructions
)

// useFilter annotates s with its compiled filter from a folder, or with where to keep it.
func useFilter(s *specs.Spec, folder string) error {
	data, err := json.Marshal(s.Linux.Seccomp)
	if err != nil {
		return fmt.Errorf("system call filter: %w", err)
	}
	sum := sha256.Sum256(data)
	name := filepath.Join(folder, hex.EncodeToString(sum[:16]))
	if program := readFilter(name); program != nil {
		s.Annotations[filterKey] = base64.StdEncoding.EncodeToString(program)
	} else {
		s.Annotations[keepFilterKey] = name
	}
	return nil
}

// readFilter gives a kept program, nil if there is none that is whole and nobody else may read or write. In the file its SHA-256 comes first.
func readFilter(name string) []byte {
	info, err := os.Lstat(name)
	if err != nil || info.Mode() != 0o600 || info.Size() > sha256.Size+maxFilter {
		return nil
	}
	data, err := os.ReadFile(name)
	if err != nil || len(data) <= sha256.Size {
		return nil
	}
	if sum := sha256.Sum256(data[sha256.Size:]); !bytes.Equal(sum[:], data[:sha256.Size]) {
		return nil
	}
	return data[sha256.Size:]
}

// keepFilter keeps the program that crun has left in an instance's state. Without it the next start takes longer, no more.
func keepFilter(state, name string) {
	program, err := os.ReadFile(filepath.Join(state, "seccomp.bpf"))
	if err != nil || len(program) == 0 || len(program)%8 != 0 || len(program) > maxFilter {
		return
	}
	if os.MkdirAll(filepath.Dir(name), 0o700) != nil {
		return
	}
	sum := sha256.Sum256(program)
	f, err := os.CreateTemp(filepath.Dir(name), ".tmp-")
	if err != nil {
		return
	}
	_, err = f.Write(append(sum[:], program...))
	if f.Close() != nil || err != nil || os.Rename(f.Name(), name) != nil {
		os.Remove(f.Name())
	}
}
