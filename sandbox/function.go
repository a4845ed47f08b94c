package sandbox

import (
	"fmt"
	"path"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// newFunctionSpec is NewSpec for an instance of a function.
func newFunctionSpec(c Config) (*specs.Spec, error) {
	f := c.Function
	if len(f.Init) == 0 || !path.IsAbs(f.Init[0]) || !filepath.IsAbs(f.Tmp) || !path.IsAbs(c.Cgroup) || path.Clean(c.Cgroup) == "/" {
		return nil, fmt.Errorf("function's instance %q: want absolute paths of init and /tmp, and a cgroup below /", c.Cgroup)
	}
	c.CPUs = 0
	resources, err := newResources(c)
	if err != nil {
		return nil, err
	}
	s := c.spec()
	s.Process = &specs.Process{
		Args: f.Init, Env: []string{"PATH=/"}, Cwd: "/", NoNewPrivileges: true,
		Capabilities: &specs.LinuxCapabilities{Bounding: initCapabilities(), Effective: initCapabilities(), Permitted: initCapabilities()},
	}
	s.Root.Readonly = true
	s.Linux.Resources = resources
	s.Linux.Namespaces = namespaces(false)
	s.Mounts = functionMounts(f)
	if f.NetNS != "" {
		s.Linux.Namespaces[len(s.Linux.Namespaces)-1].Path = f.NetNS
	} else {
		s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	}
	return s, c.addFilter(s)
}

// initCapabilities are what an init of ours needs to become somebody else, and to end whom it has started.
func initCapabilities() []string { return []string{"CAP_KILL", "CAP_SETGID", "CAP_SETUID"} }

// functionMounts lists what is mounted inside, over folders that the root must have: it is read-only.
func functionMounts(f *Function) []specs.Mount {
	tmp := bind(f.Tmp, "/tmp", false)
	tmp.Options = append(tmp.Options, "nosuid", "nodev")
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=64k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
	}
	if f.NetNS == "" {
		mounts = append(mounts, sysMount(false))
	} else { // the kernel shows its view of a network to the owner of the namespace alone, who is the host
		mounts = append(mounts, specs.Mount{Destination: "/sys", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "nodev", "mode=755", "size=64k"}})
	}
	// Programs look here for how much memory they may take.
	cgroup := specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}}
	return append(mounts, cgroup, tmp)
}
