package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"thaw/mount"
)

const (
	fsxSteps = 400
	fsxFiles = 4
	fsxLimit = 3 << 20 // bytes of a file
)

// fsx does the same random things to two trees, and compares what they hold.
type fsx struct {
	t     *testing.T
	rng   *rand.Rand
	trees [2]string
}

// path gives a file of the image or a new one.
func (x *fsx) path(tree string, n int) string {
	if n < fsxFiles/2 {
		return tree + dataPath(n)
	}
	return fmt.Sprintf("%s/data/new%d", tree, n)
}

// step does one thing to one file, in both trees.
func (x *fsx) step(i int) error {
	n, what := x.rng.IntN(fsxFiles), x.rng.IntN(10)
	off, size := x.rng.Int64N(fsxLimit), x.rng.IntN(200_000)+1
	if x.rng.IntN(2) == 0 { // as databases do
		off, size = off&^4095, (size|4095)+1
	}
	data := make([]byte, size)
	for j := range data {
		data[j] = byte(i + j>>8)
	}
	var read [2][]byte
	for tree := range x.trees {
		f, err := os.OpenFile(x.path(x.trees[tree], n), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		switch what {
		case 0:
			err = f.Truncate(off)
		case 1:
			err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, int64(size))
		case 2:
			err = errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
		case 3:
			err = os.Rename(f.Name(), x.path(x.trees[tree], fsxFiles-1))
		case 4:
			err = os.Remove(f.Name())
		case 5, 6:
			read[tree] = make([]byte, size)
			var got int
			got, err = f.ReadAt(read[tree], off)
			if read[tree] = read[tree][:got]; errors.Is(err, io.EOF) {
				err = nil
			}
		default:
			_, err = f.WriteAt(data, off)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("step %d, %d of %s, %d bytes at %d: %w", i, what, f.Name(), size, off, err)
		}
	}
	if !bytes.Equal(read[0], read[1]) {
		return fmt.Errorf("step %d: %d bytes at %d of file %d differ: %d and %d were read", i, size, off, n, len(read[0]), len(read[1]))
	}
	return nil
}

// same compares the files at the end, read from the disk.
func (x *fsx) same() error {
	for n := range fsxFiles {
		var all [2][]byte
		for tree := range x.trees {
			data, err := os.ReadFile(x.path(x.trees[tree], n))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			all[tree] = data
		}
		if !bytes.Equal(all[0], all[1]) {
			return fmt.Errorf("file %d differs: %d and %d bytes", n, len(all[0]), len(all[1]))
		}
	}
	return nil
}

// reference mounts a copy of the image's device, as a plain loop file.
func (m *machine) reference(name, dir string) {
	m.t.Helper()
	file := filepath.Join(m.t.TempDir(), "device")
	m.must("export", name, file)
	loop, err := mount.AttachLoop(file, false)
	if err != nil {
		m.t.Fatal(err)
	}
	defer loop.Close()
	if err := mount.MountExt4(loop.Device, dir, false); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		if err := mount.Unmount(dir); err != nil {
			m.t.Error(err)
		}
	})
}

// Random writes through the kernel's ext4 come out as on a plain loop file, for
// two mounts of one image at once, and leave a clean file system and untouched
// chunks.
func TestWritesAsOnALoopFile(t *testing.T) {
	t.Parallel() // it waits for processes mostly
	m := newMachine(t)
	m.convert("app", 1, "--free", "64MiB")
	var work sync.WaitGroup
	for seed := range uint64(2) {
		x := &fsx{t: t, rng: rand.New(rand.NewPCG(seed, 1)), trees: [2]string{t.TempDir(), t.TempDir()}}
		r := m.start("mount", "app", x.trees[0], "--rw")
		m.reference("app", x.trees[1])
		await(t, x.trees[0]+"/data")
		work.Go(func() {
			for i := range fsxSteps {
				r.late.Reset(patience) // it is one mount for all of them
				if err := x.step(i); err != nil {
					t.Errorf("seed %d: %v", seed, err)
					return
				}
			}
			if err := x.same(); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
		})
		defer func() { // in turn
			r.late.Reset(patience)
			m.fsck(x)
			m.must("umount", x.trees[0])
			if e := r.wait(); e.code != 0 {
				t.Error(e)
			}
			checkChunks(t, m.state+"/origin/roots/r1/chunks", m.state+"/cache")
		}()
	}
	work.Wait()
}

// fsck has the file system settle and checks a copy of its device.
func (m *machine) fsck(x *fsx) {
	m.t.Helper()
	mounts, err := mount.Under(x.trees[0])
	if err != nil || len(mounts) != 1 {
		m.t.Errorf("%v, %v", mounts, err)
		return
	}
	if err := errors.Join(mounts[0].Settle(), x.same()); err != nil {
		m.t.Error(err)
		return
	}
	device := filepath.Join(m.t.TempDir(), "device")
	if out, err := exec.Command("cp", "--sparse=always", mounts[0].Source, device).CombinedOutput(); err != nil {
		m.t.Errorf("%v: %s", err, out)
	}
	cmd := exec.Command("e2fsck", "-fn", device)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "not cleanly") {
		m.t.Errorf("e2fsck: %v\n%s", err, out)
	}
}
