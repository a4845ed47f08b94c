package cgroups

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxFile bounds what is read of one of the kernel's files: a memory.stat of
// v1 has 1.5 KiB, of v2 2 KiB.
const maxFile = 16 << 10

// gone tells whether an error says that the group has been removed.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// read reads a small file of the kernel's from its beginning, as often as one
// likes.
func read(f *os.File) (string, error) {
	var buf [256]byte // no file that stays open says more
	n, err := f.ReadAt(buf[:], 0)
	if err != nil && err != io.EOF {
		return "", known(err)
	}
	return string(bytes.TrimSpace(buf[:n])), nil
}

// write writes a small file of the kernel's in one call.
func write(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return known(err)
}

// writeTo writes a file of a group that is not kept open.
func writeTo(dir, name, text string) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
	if err != nil {
		return known(err)
	}
	err = write(f, text)
	return errors.Join(err, f.Close())
}

// known gives the kernel's "no such device" of a removed group its name here.
func known(err error) error {
	if err != nil && gone(err) {
		return fmt.Errorf("%w (%w)", ErrNoGroup, err)
	}
	return err
}

// readFrom reads a file of a group that is not kept open.
func readFrom(dir, name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// numbers reads a list of process ids.
func numbers(data []byte) []int {
	var list []int
	for field := range bytes.FieldsSeq(data) {
		if n, err := strconv.Atoi(string(field)); err == nil {
			list = append(list, n)
		}
	}
	return list
}

// fields reads "name number" lines. Others are left out.
func fields(data []byte) map[string]int64 {
	all := map[string]int64{}
	for line := range strings.Lines(string(data)) {
		name, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			all[name] = n
		}
	}
	return all
}
