package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"thaw/host"
	"thaw/sandbox"
	"thaw/text"
)

const (
	trialName = "trial"
	startName = "start, "
	// trialStatus is how the trial's program ends: no other failure looks so.
	trialStatus = 42
	trialDir    = ".doctor-"
	// trialAge is how old what a killed doctor has left is at least.
	trialAge = time.Hour
	// trialTime bounds one start.
	trialTime = 30 * time.Second
)

// tryStarts converts an image of one program and starts it with each runtime,
// in a state of its own beside the real one's files. Nothing of it stays.
func (g *Globals) tryStarts(ctx context.Context) []finding {
	failed := func(err error) []finding {
		return []finding{{Name: "trial", Needed: true, Detail: text.Line(err.Error()), Mend: lookFurther}}
	}
	_, err := os.Stat(g.State)
	fresh := err != nil
	if err := os.MkdirAll(g.State, 0o711); err != nil {
		return failed(err)
	}
	old, _ := filepath.Glob(filepath.Join(g.State, trialDir+"*")) // the pattern is right
	for _, dir := range old {
		if info, err := os.Stat(dir); err == nil && time.Since(info.ModTime()) > trialAge {
			_ = endTrial(ctx, dir)
		}
	}
	dir, err := os.MkdirTemp(g.State, trialDir)
	if err != nil {
		return failed(err)
	}
	all, err := tryIn(ctx, dir)
	err = errors.Join(err, endTrial(context.WithoutCancel(ctx), dir))
	if fresh {
		_ = os.Remove(g.State)
	}
	if err != nil {
		return append(all, failed(err)...)
	}
	return all
}

func tryIn(ctx context.Context, dir string) ([]finding, error) {
	program, err := exitProgram(runtime.GOARCH, trialStatus)
	if err != nil {
		return nil, err
	}
	if err := writeLayout(filepath.Join(dir, "layout"), program); err != nil {
		return nil, err
	}
	chosen, err := sandbox.Find("")
	if err != nil {
		return nil, nil // examine has said so
	}
	if _, out, err := runSelf(ctx, "convert", "--state="+dir, "--name="+trialName, "oci:"+filepath.Join(dir, "layout")); err != nil {
		return nil, fmt.Errorf("thaw convert: %s", cmp.Or(lastLine(out), err.Error()))
	}
	var all []finding
	for _, name := range []string{"crun", "runc", "runsc"} {
		r, err := sandbox.Find(name)
		if err != nil {
			continue
		}
		f := tryStart(ctx, dir, r)
		if f.Needed = r.Path == chosen.Path; f.Needed {
			f.Detail += " (thaw run takes this runtime)"
		}
		all = append(all, f)
	}
	works := slices.IndexFunc(all, func(f finding) bool { return f.OK })
	if works > 0 {
		all[0].Mend = "thaw run --runtime " + strings.TrimPrefix(all[works].Name, startName) + " …"
	}
	return all, nil
}

// endTrial removes what a trial has made.
func endTrial(ctx context.Context, dir string) error {
	h, err := host.Open(dir)
	if err != nil {
		return err
	}
	if err := h.Remove(ctx); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// tryStart starts the program with one runtime.
func tryStart(ctx context.Context, dir string, r sandbox.Runtime) finding {
	stats := filepath.Join(dir, "stats.json")
	status, out, err := runSelf(ctx, "run", "--state="+dir, "--runtime="+r.Path, "--stats-json="+stats, trialName)
	if status != trialStatus {
		detail := lastLine(out)
		if detail == "" && err != nil {
			detail = err.Error()
		}
		return finding{Name: startName + r.Name, Detail: detail, Mend: lookFurther}
	}
	f := finding{Name: startName + r.Name, OK: true, Detail: "an image of one program was started"}
	var told struct {
		StartMS map[string]float64 `json:"start_ms"`
	}
	if data, err := os.ReadFile(stats); err == nil && json.Unmarshal(data, &told) == nil {
		f.Detail += fmt.Sprintf(" in %.0f ms", told.StartMS["total"])
	}
	return f
}

// runSelf runs this program, with none of the environment's flags, and gives
// its status and what it wrote. The error is about it, not the program's.
func runSelf(ctx context.Context, args ...string) (status int, out []byte, err error) {
	self, err := os.Executable()
	if err != nil {
		return -1, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, trialTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, args...)
	// Asked to end it cleans up; killed it could not.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = trialTime
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "THAW_") || strings.HasPrefix(e, "THAW_TEST_") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	out, err = cmd.CombinedOutput()
	return cmd.ProcessState.ExitCode(), out, err // -1 of a state that is nil
}

// lastLine gives the last line that thaw itself has written, or the last one.
func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if text, ok := strings.CutPrefix(lines[i], "thaw: "); ok && !strings.HasPrefix(text, "read ") {
			return text
		}
	}
	return lines[len(lines)-1]
}

// exitProgram makes the smallest program there is: it ends with a status, below
// 128. It needs nothing of an image, not even a C library.
func exitProgram(arch string, status byte) ([]byte, error) {
	const base = 0x400000 // where linkers put programs
	var code []byte
	var machine elf.Machine
	switch arch {
	case "amd64": // mov edi, status; mov eax, 60 (exit); syscall
		machine, code = elf.EM_X86_64, []byte{0xbf, status, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05}
	case "arm64": // mov x0, status; mov x8, 93 (exit); svc 0
		machine = elf.EM_AARCH64
		for _, word := range []uint32{0xd2800000 | uint32(status)<<5, 0xd2800000 | 93<<5 | 8, 0xd4000001} {
			code = binary.LittleEndian.AppendUint32(code, word)
		}
	default:
		return nil, fmt.Errorf("no try on %s: thaw doctor has no program for it", arch)
	}
	head := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64,
	}
	copy(head.Ident[:], elf.ELFMAG)
	head.Ident[elf.EI_CLASS], head.Ident[elf.EI_DATA], head.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	start := uint64(head.Phoff) + uint64(head.Phentsize)
	head.Entry = base + start
	size := start + uint64(len(code))
	load := elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Align: 1 << 16}
	var b bytes.Buffer
	err := errors.Join(binary.Write(&b, binary.LittleEndian, head), binary.Write(&b, binary.LittleEndian, load))
	b.Write(code)
	return b.Bytes(), err
}

// writeLayout writes an OCI layout whose image is one program.
func writeLayout(dir string, program []byte) error {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	err := w.WriteHeader(&tar.Header{Name: "try", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))})
	if err == nil {
		_, err = w.Write(program)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return err
	}
	type object = map[string]any
	const kind = "application/vnd.oci.image."
	blob := func(mediaType string, data []byte) object {
		sum := sha256.Sum256(data)
		name := hex.EncodeToString(sum[:])
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, "blobs", "sha256", name), data, 0o644))
		return object{"mediaType": kind + mediaType, "digest": "sha256:" + name, "size": len(data)}
	}
	text := func(v object) []byte {
		data, jerr := json.Marshal(v)
		err = errors.Join(err, jerr)
		return data
	}
	base := blob("layer.v1.tar", layer.Bytes())
	config := blob("config.v1+json", text(object{
		"os": "linux", "architecture": runtime.GOARCH, "config": object{"Entrypoint": []string{"/try"}},
		"rootfs": object{"type": "layers", "diff_ids": []any{base["digest"]}},
	}))
	top := blob("manifest.v1+json", text(object{"schemaVersion": 2, "mediaType": kind + "manifest.v1+json", "config": config, "layers": []any{base}}))
	index := text(object{"schemaVersion": 2, "manifests": []any{top}})
	return errors.Join(err,
		os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644),
		os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
}
