package worker

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// ownBundle is where every root has the operator's certificates alone, for
// programs that add a file to what they trust.
const ownBundle = ".thaw/ca-bundle.pem"

// usualBundle is made in images that have no certificates: Go, OpenSSL on
// Debian and Alpine, and curl look there.
const usualBundle = "etc/ssl/certs/ca-certificates.crt"

// usualBundles are the files in which distributions keep the certificates that
// programs trust; some are links to others.
var usualBundles = []string{
	usualBundle,                       // Debian, Ubuntu, Alpine, Arch
	"etc/pki/tls/certs/ca-bundle.crt", // Amazon Linux, Fedora, RHEL
	"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"etc/ssl/ca-bundle.pem", // SUSE
	"etc/ssl/cert.pem",      // OpenSSL's own
}

// maxBundle bounds a file of certificates in bytes: systems' have 220 KB.
const maxBundle = 4 << 20

// checkBundle refuses what is not certificates alone.
func checkBundle(text []byte) error {
	rest, n := text, 0
	for ; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("it holds a %s: every function could read that", block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("certificate %d: %w", n+1, err)
		}
	}
	switch {
	case len(text) > maxBundle:
		return fmt.Errorf("%d bytes, more than %d", len(text), maxBundle)
	case n == 0 || len(bytes.TrimSpace(rest)) > 0 && bytes.Contains(rest, []byte("-----BEGIN")):
		return errors.New("want certificates in PEM")
	}
	return nil
}

// trust adds to the entries of a skeleton, to go above the image at root, the
// image's own files of trusted certificates with the operator's added, or one if
// it has none, and gives the variables that name them. What is found in odd
// places, or too long, is left as it is.
func trust(root string, bundle []byte, entries map[string]string) (env []string, err error) {
	top, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(top)
	var first string
	for _, name := range usualBundles {
		at, content, err := lookInto(top, name)
		if err != nil {
			return nil, err
		}
		if content == nil || !mayShow(at, entries) {
			continue
		}
		show(entries, at, string(bytes.TrimRight(content, "\n"))+"\n"+string(bundle))
		if first == "" {
			first = at
		}
	}
	if first == "" {
		if first, err = newBundle(top, entries); err != nil {
			return nil, err
		}
		show(entries, first, string(bundle))
	}
	entries[ownBundle] = string(bundle)
	return []string{"SSL_CERT_FILE=/" + first, "NODE_EXTRA_CA_CERTS=/" + ownBundle}, nil
}

// newBundle gives the place of usualBundle, whose folders may be links.
func newBundle(top int, entries map[string]string) (string, error) {
	for dir := path.Dir(usualBundle); dir != "etc"; dir = path.Dir(dir) {
		at, _, err := lookInto(top, dir)
		if err != nil {
			return "", err
		}
		if at == "" {
			continue
		}
		if at = path.Join(at, strings.TrimPrefix(usualBundle, dir)); mayShow(at, entries) {
			return at, nil
		}
	}
	return usualBundle, nil
}

// lookInto finds a file or folder of an image, following links inside of it: its
// place, empty if there is none, and the content if it is a regular file that is
// not too long.
func lookInto(top int, name string) (at string, content []byte, err error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(top, name, &how)
	for range 10 { // the kernel gives up when something is renamed at the same time
		if !errors.Is(err, unix.EAGAIN) {
			break
		}
		fd, err = unix.Openat2(top, name, &how)
	}
	switch {
	case errors.Is(err, unix.EIO):
		return "", nil, fmt.Errorf("/%s of the image: %w", name, err)
	case err != nil: // not there, or not to be opened
		return "", nil, nil
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	place, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	root, rerr := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", top))
	info, serr := f.Stat()
	if err := errors.Join(err, rerr, serr); err != nil {
		return "", nil, err
	}
	if info.Mode().IsRegular() && info.Size() <= maxBundle {
		if content, err = io.ReadAll(io.LimitReader(f, maxBundle)); err != nil {
			return "", nil, fmt.Errorf("/%s of the image: %w", name, err)
		}
	}
	return strings.TrimPrefix(strings.TrimPrefix(place, root), "/"), content, nil
}

// mayShow tells whether a skeleton may have a file there: in a folder that is for
// certificates, and not in the place of one that it has.
func mayShow(at string, entries map[string]string) bool {
	_, taken := entries[at]
	top, _, inside := strings.Cut(at, "/")
	return inside && !taken && (top == "etc" || top == "usr" || top == "var")
}

// show adds a file to a skeleton, and the folders that it lies in.
func show(entries map[string]string, at, content string) {
	entries[at] = content
	for dir := path.Dir(at); dir != "."; dir = path.Dir(dir) {
		entries[dir+"/"] = ""
	}
}
