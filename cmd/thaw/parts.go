package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// This program is built twice (cmd/thaw/build): without drivers of clouds, for
// a quick start, and with them, as a part of the first. The other parts are
// programs that run beside it.

// cloudPart is the build with all drivers; the underscore keeps it out of
// itself.
const cloudPart = "_thaw-cloud"

// What only that build does: verbs, and URLs by their schemes.
var (
	fullVerbs = []string{"zone", "metrics", "top", // with Prometheus' library
		"up", "env", "cluster", "builder", "frontend", "manager", "worker", "fleet", "keys", "deploy", "invoke", "functions", "delete", "logs", "coldstarts", "events", "registry", "bench", "base"}
	cloudOrigins = []string{"s3", "gs", "azblob"}
	cloudKeys    = []string{"awskms", "gcpkms", "azurekeyvault", "hashivault"}
)

// scheme gives that of a URL, or "" for what is none: whoever opens it will say
// so.
func scheme(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return u.Scheme
}

const (
	partsDir = "parts"
	partPerm = 0o755 // parts also run as other users than the one who extracts them
	partTemp = ".tmp-"
	// partAge is how long a part of another version of this program stays after
	// it was written: if both are in use, neither writes all day.
	partAge = 24 * time.Hour
)

var errNoParts = errors.New("this thaw was built without its parts: build it with make build")

// part gives the path of a program that this one holds, and writes it there if
// it is not: STATE/parts/<start of its SHA-256>-<name>. Processes may do so at
// once; what has the name is whole. Parts of other versions go after a day.
func (g *Globals) part(name string) (path string, err error) {
	dir := filepath.Join(g.State, partsDir)
	path, err = extract(g.parts, dir, name)
	if err != nil && !errors.Is(err, errNoParts) {
		err = fmt.Errorf("writing %s, a part of this program, to %s: %w", strings.TrimPrefix(name, "_"), dir, err)
	}
	return path, err
}

func extract(parts fs.FS, dir, name string) (string, error) {
	text, err := fs.ReadFile(parts, name+".sha256")
	if errors.Is(err, fs.ErrNotExist) {
		return "", errNoParts
	}
	sum := strings.TrimSpace(string(text))
	if err == nil && len(sum) != hex.EncodedLen(sha256.Size) {
		err = fmt.Errorf("%s.sha256 is no SHA-256", name)
	}
	if err != nil {
		return "", err
	}
	info, err := fs.Stat(parts, name)
	if err != nil {
		return "", err
	}
	if err := ensureParts(dir); err != nil {
		return "", err
	}
	path := filepath.Join(dir, sum[:16]+"-"+strings.TrimPrefix(name, "_"))
	if there(path, info.Size()) {
		return path, nil
	}
	if err := write(parts, name, sum, path); err != nil {
		return "", err
	}
	sweep(dir, path)
	return path, nil
}

// ensureParts makes the folder, or refuses one in which others could put a
// program in the place of ours.
func ensureParts(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o755)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err == nil && (!info.IsDir() || !oursAlone(info)) {
		err = fmt.Errorf("%s is not a folder that only this user writes to: chown and chmod 755 it, or remove it", dir)
	}
	return err
}

// there tells whether a part is: what has its name was whole when it got it.
func there(path string, size int64) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o100 != 0 && info.Size() == size && oursAlone(info)
}

// oursAlone tells whether nobody but this user and root may write to it.
func oursAlone(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && (int(st.Uid) == os.Geteuid() || st.Uid == 0) && info.Mode().Perm()&0o022 == 0
}

// write gives a part its name once it is whole and durable.
func write(parts fs.FS, name, sum, path string) error {
	from, err := parts.Open(name)
	if err != nil {
		return err
	}
	defer from.Close()
	file, err := os.CreateTemp(filepath.Dir(path), partTemp)
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) // if it is there still
	hash := sha256.New()
	_, err = io.Copy(io.MultiWriter(file, hash), from)
	if err == nil && hex.EncodeToString(hash.Sum(nil)) != sum {
		err = fmt.Errorf("%s is not what its SHA-256 says", name)
	}
	if err == nil {
		err = errors.Join(file.Chmod(partPerm), file.Sync())
	}
	// Closed before it has its name: a file open for writing cannot be run.
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}

// sweep removes what other versions and killed processes have left. What stays
// costs only space.
func sweep(dir, keep string) {
	items, _ := os.ReadDir(dir)
	for _, item := range items {
		path := filepath.Join(dir, item.Name())
		info, err := item.Info()
		if err == nil && path != keep && info.Mode().IsRegular() && time.Since(info.ModTime()) > partAge {
			_ = os.Remove(path)
		}
	}
}
