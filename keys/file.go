package keys

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
)

const (
	keySize  = 32                     // bytes: AES-256
	fileSize = 2*keySize + 1          // bytes: hex digits and a newline
	fileWord = "thaw key file v1\x00" // additional data of every wrapped value
)

// fileKey is the Keeper of a key file.
type fileKey struct{ aead cipher.AEAD }

func openFile(u *url.URL, create bool) (*Tenant, error) {
	path := filepath.Clean(u.Path)
	switch {
	case u.Host != "" || !filepath.IsAbs(u.Path):
		return nil, errors.New("keys: a key file's URL needs an absolute path and three slashes: file:///path/KEY")
	case u.RawQuery != "" || path != u.Path:
		return nil, errors.New("keys: a key file's URL is a clean path without parameters: file:///path/KEY")
	}
	key, err := loadFile(path, create)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	keeper, err := newFileKey(key)
	if err != nil {
		return nil, err
	}
	clean := url.URL{Scheme: "file", Path: path}
	return &Tenant{url: clean.String(), keeper: keeper}, nil
}

func newFileKey(key []byte) (Keeper, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return fileKey{aead}, nil
}

// Wrap implements Keeper.
func (k fileKey) Wrap(_ context.Context, plain []byte) ([]byte, error) {
	return k.aead.Seal(nil, nil, plain, []byte(fileWord)), nil
}

// Unwrap implements Keeper.
func (k fileKey) Unwrap(_ context.Context, wrapped []byte) ([]byte, error) {
	plain, err := k.aead.Open(nil, nil, wrapped, []byte(fileWord))
	if err != nil {
		return nil, ErrRefused
	}
	return plain, nil
}

// loadFile reads the key, and makes it first if it may and must. Of processes
// that make it at once, link lets one win; all read what the winner wrote.
func loadFile(path string, create bool) ([]byte, error) {
	key, err := readFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if !create {
		return nil, fmt.Errorf("keys: no key at %s: put the tenant's key back from its backup: %w", path, fs.ErrNotExist)
	}
	if err := makeFile(path); err != nil {
		return nil, fmt.Errorf("keys: cannot make the key: %w", err)
	}
	if key, err = readFile(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("keys: %s is a link to nothing: remove it, or put back what it leads to", path)
	}
	return key, err
}

// readFile follows links, since mounted secrets are links; owner and mode are
// those of the file that was opened.
func readFile(path string) ([]byte, error) {
	// without O_NONBLOCK, the open of a FIFO would wait for ever
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	defer f.Close()
	if err := checkPrivate(f, 0o077); err != nil {
		return nil, err
	}
	if err := checkFolder(filepath.Dir(path)); err != nil {
		return nil, err
	}
	text := make([]byte, fileSize+1)
	defer clear(text)
	n, err := io.ReadFull(f, text)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("keys: %w", err)
	}
	key := make([]byte, keySize)
	if !decodeKey(key, text[:n]) {
		clear(key)
		return nil, fmt.Errorf("keys: %s does not hold a key (64 lower-case hex digits and a newline): put it back from its backup", path)
	}
	return key, nil
}

// decodeKey takes the one form in which a key is written.
func decodeKey(key, text []byte) bool {
	if len(text) != fileSize || text[fileSize-1] != '\n' {
		return false
	}
	for _, c := range text[:fileSize-1] {
		if 'A' <= c && c <= 'F' {
			return false
		}
	}
	_, err := hex.Decode(key, text[:fileSize-1])
	return err == nil
}

// trusted reports whether user self may rely on what owner has. To root, who
// is told the path by somebody, all owners are alike.
func trusted(owner, self uint32) bool { return owner == self || owner == 0 || self == 0 }

// checkPrivate refuses a file or folder with one of the mode bits, or of an
// owner who is not trusted.
func checkPrivate(f *os.File, bits fs.FileMode) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	path, mode := f.Name(), info.Mode()
	owner, self := info.Sys().(*syscall.Stat_t).Uid, uint32(os.Geteuid())
	switch {
	case !mode.IsDir() && !mode.IsRegular():
		return fmt.Errorf("keys: %s is no regular file", path)
	case mode.IsDir() != (bits == folderBits):
		return fmt.Errorf("keys: %s is a folder where a key file should be, or the reverse", path)
	case !trusted(owner, self):
		return fmt.Errorf("keys: %s belongs to user %d: chown it to the user that runs thaw (%d)", path, owner, self)
	case mode.Perm()&bits != 0 && mode.IsDir():
		return fmt.Errorf("keys: others may write to %s (mode %04o) and replace the key: chmod 700 it", path, mode.Perm())
	case mode.Perm()&bits != 0:
		return fmt.Errorf("keys: others have access to %s (mode %04o): chmod 600 it, and use a new key if they may have read it", path, mode.Perm())
	}
	return nil
}

// folderBits of a mode let others replace the files in a folder.
const folderBits fs.FileMode = 0o022

func checkFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	defer f.Close()
	return checkPrivate(f, folderBits)
}

// makeFile writes a new key beside its place and links it there, unless there
// is one by then. A kill leaves at most a temp file that nothing reads. On
// return the key survives a crash, whoever made it.
func makeFile(path string) error {
	folder := filepath.Dir(path)
	if err := makeFolder(folder); err != nil {
		return err
	}
	if err := checkFolder(folder); err != nil {
		return err
	}
	temp, err := os.CreateTemp(folder, ".tmp-key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	err = errors.Join(writeKey(temp), temp.Close())
	if err != nil {
		return err
	}
	if err := os.Link(temp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncFolder(folder)
}

func writeKey(f *os.File) error {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails
	text := append(hex.AppendEncode(make([]byte, 0, fileSize), key), '\n')
	defer clear(text)
	clear(key)
	if _, err := f.Write(text); err != nil {
		return err
	}
	return f.Sync()
}

// makeFolder makes what is missing of path, each durable before the next.
func makeFolder(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	above := filepath.Dir(path)
	if err := makeFolder(above); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncFolder(above)
}

func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
