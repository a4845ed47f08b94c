package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Volume is a file or folder of the host that an instance sees, as it is: its owners are ids of the host, and what belongs to root is
// nobody's inside. Whoever wants it otherwise gives a mount of it in which owners are mapped, as thaw run does. Then root inside is root
// there: it reads and writes what root may, and the files that it makes are root's outside too, as they are with docker.
type Volume struct {
	Source   string // absolute path on the host; must exist
	Target   string // absolute path inside; made if it is missing
	ReadOnly bool
}

// ParseVolume reads SRC:DST, SRC:DST:ro or SRC:DST:rw. A relative SRC is taken from the working directory.
func ParseVolume(s string) (Volume, error) {
	fields := strings.Split(s, ":")
	v := Volume{}
	switch {
	case len(fields) == 3 && fields[2] == "ro":
		v.ReadOnly = true
	case len(fields) == 3 && fields[2] == "rw", len(fields) == 2:
	default:
		return Volume{}, fmt.Errorf("volume %q: want SRC:DST, with :ro to keep it from being written", s)
	}
	source, err := filepath.Abs(fields[0])
	if err != nil || fields[0] == "" {
		return Volume{}, fmt.Errorf("volume %q: no source", s)
	}
	v.Source, v.Target = source, fields[1]
	return v, v.check()
}

func (v Volume) check() error {
	if !path.IsAbs(v.Target) || path.Clean(v.Target) == "/" || hasNUL(v.Target) {
		return fmt.Errorf("volume %q: its place inside must be an absolute path below /", v.Target)
	}
	if err := checkText("volume's place inside", v.Target); err != nil {
		return err
	}
	if !filepath.IsAbs(v.Source) {
		return fmt.Errorf("volume %q: want an absolute path", v.Source)
	}
	if _, err := os.Stat(v.Source); err != nil {
		return fmt.Errorf("volume: %w", err)
	}
	return nil
}

// WriteBundle makes the folder c.Bundle and writes into it all that a runtime needs: config.json and the small files of /etc.
func WriteBundle(c Config) error {
	if !filepath.IsAbs(c.Bundle) {
		return fmt.Errorf("bundle %q: want an absolute path", c.Bundle)
	}
	spec, err := NewSpec(c)
	if err != nil {
		return err
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Bundle, 0o711); err != nil { // the instance's root, who is nobody here, reaches the files by their paths
		return fmt.Errorf("bundle: %w", err)
	}
	files := map[string]string{"config.json": string(data)}
	if c.Function == nil { // whose root has them
		files["hostname"] = c.hostname() + "\n"
		files["hosts"] = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t" + c.hostname() + "\n"
		files["resolv.conf"] = "# no network\n"
	}
	for name, text := range files {
		mode := fs.FileMode(0o644)
		if name == "config.json" {
			mode = 0o600 // the environment may hold secrets
		}
		if err := os.WriteFile(filepath.Join(c.Bundle, name), []byte(text), mode); err != nil {
			return fmt.Errorf("bundle: %w", err)
		}
	}
	return nil
}

// newMounts lists what is mounted inside: docker's, then three files of /etc, then the user's volumes.
func newMounts(c Config) ([]specs.Mount, error) {
	if !path.IsAbs(c.Cgroup) || path.Clean(c.Cgroup) == "/" {
		return nil, fmt.Errorf("cgroup %q: want an absolute path below /", c.Cgroup)
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		sysMount(c.HostNetwork),
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
	}
	for _, name := range []string{"hostname", "hosts", "resolv.conf"} {
		source := filepath.Join(c.Bundle, name)
		if host := "/etc/" + name; c.HostNetwork && name != "hostname" && exists(host) {
			source = host
		}
		mounts = append(mounts, bind(source, "/etc/"+name, true))
	}
	for _, v := range c.Volumes {
		if err := v.check(); err != nil {
			return nil, err
		}
		if err := checkText("volume", v.Source); err != nil {
			return nil, err
		}
		mounts = append(mounts, bind(v.Source, path.Clean(v.Target), v.ReadOnly))
	}
	return mounts, nil
}

// sysMount shows the kernel's own view of the instance's network. The owner of a user namespace may not mount that of another's network:
// on the host's network it sees the host's, as it is.
func sysMount(hostNetwork bool) specs.Mount {
	if hostNetwork {
		return specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", "ro"}}
	}
	return specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}}
}

func bind(source, target string, readOnly bool) specs.Mount {
	m := specs.Mount{Destination: target, Type: "bind", Source: source, Options: []string{"rbind", "rprivate"}}
	if readOnly {
		m.Options = append(m.Options, "ro")
	}
	return m
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return !errors.Is(err, fs.ErrNotExist)
}
