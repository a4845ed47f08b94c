package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// via says how a source is reached.
type via string

const (
	viaRegistry      via = "docker"
	viaLayout        via = "oci"
	viaLayoutArchive via = "oci-archive"
	viaDockerArchive via = "docker-archive"
)

// foreignTransports are skopeo's others. Without this list "dir:x" would be
// taken for tag x of a repository dir, far from what was meant.
var foreignTransports = []string{"containers-storage", "dir", "docker-daemon", "ostree", "sif", "tarball"}

// source is a parsed source: path is a file's or folder's, or the reference of
// a registry's image; tag is "" if none was given.
type source struct {
	via       via
	path, tag string
}

// parseSource splits what the package comment describes.
func parseSource(s string) (source, error) {
	if ref, ok := strings.CutPrefix(s, "docker://"); ok {
		return registrySource(ref)
	}
	if strings.HasPrefix(s, "/") || strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../") {
		return source{}, fmt.Errorf("oci: %w: %s is a path: say what it is by oci:, oci-archive: or docker-archive: before it", ErrUnsupported, oneLine(s))
	}
	head, rest, colon := strings.Cut(s, ":")
	switch t := via(head); {
	case !colon: // an image may be called like a transport
	case t == viaLayout || t == viaLayoutArchive || t == viaDockerArchive:
		path, tag := splitPath(rest)
		if path == "" {
			return source{}, fmt.Errorf("oci: %w: %q names no path: write %s:PATH or %s:PATH:TAG", ErrUnsupported, oneLine(s), t, t)
		}
		return source{via: t, path: path, tag: tag}, nil
	case slices.Contains(foreignTransports, head):
		return source{}, fmt.Errorf("oci: source %s: is not read here (docker://%s would be a registry's image): %w", oneLine(s), oneLine(s), ErrUnsupported)
	}
	return registrySource(s)
}

// registrySource refuses what is no reference without repeating it, if it may
// hold a password: "user:password@host/image", or a URL of another kind.
func registrySource(ref string) (source, error) {
	host, _, slash := strings.Cut(ref, "/")
	switch {
	case slash && strings.Contains(host, "@"):
		return source{}, fmt.Errorf("oci: %w: a reference does not take a user and password: log in with docker login, which leaves them in its config", ErrUnsupported)
	case strings.Contains(ref, "://"):
		return source{}, fmt.Errorf("oci: sources of that kind are not read: a registry's image is docker://HOST/IMAGE: %w", ErrUnsupported)
	}
	return source{via: viaRegistry, path: ref}, nil
}

// splitPath ends the path at the first colon that leaves something existing
// before it, and at the first colon of all if none does. Errors other than
// absence count as existing: the open that follows reports them.
func splitPath(s string) (path, tag string) {
	for i := 0; i <= len(s); i++ {
		if i < len(s) && s[i] != ':' {
			continue
		}
		if _, err := os.Stat(s[:i]); err == nil || !os.IsNotExist(err) {
			return s[:i], strings.TrimPrefix(s[i:], ":")
		}
	}
	path, tag, _ = strings.Cut(s, ":")
	return path, tag
}

// name is Image.DefaultName.
func (s source) name() string {
	tag := s.tag
	switch {
	case s.via == viaRegistry:
		return s.path
	case strings.HasPrefix(tag, "@"):
		tag = ""
	case tag != "" && (s.via == viaDockerArchive || strings.ContainsAny(tag, ":/")):
		return tag // a whole reference
	}
	base := filepath.Base(s.path)
	if abs, err := filepath.Abs(s.path); err == nil { // for "." and ".."
		base = filepath.Base(abs)
	}
	if base = plainName(base); base == "" {
		base = "image"
	}
	if tag == "" {
		return base
	}
	return base + ":" + tag
}

// plainName replaces what is in names of files and in none of images.
func plainName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' {
			return r
		}
		return '-'
	}, s)
	return strings.TrimLeft(s, "._-")
}
