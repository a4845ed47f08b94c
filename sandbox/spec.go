// Package sandbox runs an instance on a root file system with an OCI runtime: crun, runc or runsc.
//
// WriteBundle turns an image's config and a user's wishes into what a runtime reads, with docker's meaning of each of them. Find picks a
// runtime that this host can run, a Supervisor starts instances with it, and Delete removes what is left of one, whoever started it.
// Check tells what the host has and lacks.
//
// An instance has all namespaces of its own, a user namespace too: its id n is the host's IDBase + n, so that its root is nobody outside.
// It gets docker's default capabilities and system calls, no new privileges, and limits on memory, CPU time and processes.
package sandbox

import (
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/containerd/console"
	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// IDBase is the host's id, user and group alike, for id 0 of every instance: above what systems give out, below the sign bit.
	IDBase = 1 << 30
	// IDCount is how many ids an instance has. An image's file with a higher owner belongs to nobody inside.
	IDCount = 1 << 30

	defaultPids = 4096 // enough for any sane program, and for gVisor, whose own threads count
	minMemory   = 6 << 20
	minPeriod   = 20 * time.Millisecond // shorter ones cost more switching than they smooth
	maxPeriod   = 100 * time.Millisecond
)

// stopSignalKey is the annotation that OCI defines for an image's stop signal; Start reads it back.
const stopSignalKey = "org.opencontainers.image.stopSignal"

// Config says what to run and how. The zero value of each field after these is docker's default.
type Config struct {
	Image    []byte // the image's config JSON
	Root     string // the instance's root file system, an absolute path on the host
	Bundle   string // absolute path of the folder for config.json and the files beside it
	Cgroup   string // absolute path of the instance's cgroup below every hierarchy's mount: "/thaw-1f-c0ffee"
	Hostname string // "" = the last element of Cgroup
	Filters  string // folder of root's alone where compiled system call filters are kept between starts; "" = compile each time

	Args        []string // replace the image's Cmd; its Entrypoint stays
	Env         []string // "K=V"; "K" alone takes the caller's value, and unsets K if the caller has none
	Dir         string   // working directory, absolute; made if it is missing
	User        string   // "user", "uid", either with ":group" or ":gid"; names are those of the image
	Volumes     []Volume
	Terminal    bool // a terminal is the instance's standard input, output and error
	HostNetwork bool // no network namespace of its own; else one with nothing but the loopback
	ReadOnly    bool // of the root file system

	Memory int64         // bytes, without swap; 0 = no limit
	CPUs   float64       // cores; 0 = no limit
	Period time.Duration // over which CPUs are counted: 20 to 100 ms, 0 = 100 ms
	Pids   int64         // processes and threads; 0 = 4096

	// Function is set for an instance of a function.
	Function *Function
}

// Function is how an instance of a function differs: its first process is an init of ours, told over a socket what to run, so that nothing
// of the image is looked at. Image, Args, Env, Dir, User, Volumes, Terminal, HostNetwork and CPUs of Config are left alone; the init sees to
// users and variables, and CPU time is limited later.
type Function struct {
	Init  []string // the command, with a path in the root; it is root inside, and may do little more than become somebody else
	Tmp   string   // absolute path of the folder that is /tmp inside
	NetNS string   // path of the network namespace that it joins; "" = one of its own, with nothing but the loopback
}

// NewSpec makes the specification that an OCI runtime reads. It looks into the root file system for users and program, takes variables
// that c.Env only names from this process, and the size of a terminal from its standard input. ExitCode tells what to exit with on errors.
func NewSpec(c Config) (*specs.Spec, error) {
	if c.Function != nil {
		return newFunctionSpec(c)
	}
	image, err := parseImage(c.Image)
	if err != nil {
		return nil, err
	}
	process, err := newProcess(c, image)
	if err != nil {
		return nil, err
	}
	resources, err := newResources(c)
	if err != nil {
		return nil, err
	}
	mounts, err := newMounts(c)
	if err != nil {
		return nil, err
	}
	s := c.spec()
	s.Process, s.Mounts, s.Annotations[stopSignalKey] = process, mounts, image.StopSignal
	s.Root.Readonly = c.ReadOnly
	s.Linux.Namespaces, s.Linux.Resources = namespaces(c.HostNetwork), resources
	if !c.HostNetwork {
		s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	}
	return s, c.addFilter(s)
}

// spec is what all instances' specifications have alike.
func (c Config) spec() *specs.Spec {
	return &specs.Spec{
		Version:     "1.0.2", // of the oldest runtimes that we run
		Root:        &specs.Root{Path: c.Root},
		Hostname:    c.hostname(),
		Annotations: map[string]string{},
		Linux: &specs.Linux{
			UIDMappings:   []specs.LinuxIDMapping{{ContainerID: 0, HostID: IDBase, Size: IDCount}},
			GIDMappings:   []specs.LinuxIDMapping{{ContainerID: 0, HostID: IDBase, Size: IDCount}},
			CgroupsPath:   c.Cgroup,
			MaskedPaths:   maskedPaths(),
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// addFilter adds the system call filter.
func (c Config) addFilter(s *specs.Spec) (err error) {
	s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s)
	if err != nil {
		return fmt.Errorf("system call filter: %w", err)
	}
	if c.Filters != "" {
		err = useFilter(s, c.Filters)
	}
	return err
}

func (c Config) hostname() string {
	if c.Hostname != "" {
		return c.Hostname
	}
	return lastElement(c.Cgroup)
}

func newProcess(c Config, image imageConfig) (*specs.Process, error) {
	args, err := image.args(c.Args)
	if err != nil {
		return nil, err
	}
	dir, err := image.dir(c.Dir)
	if err != nil {
		return nil, err
	}
	name := image.User
	if c.User != "" {
		name = c.User
	}
	user, home, err := lookUser(c.Root, name)
	if err != nil {
		return nil, err
	}
	p := &specs.Process{
		Terminal:        c.Terminal,
		User:            user,
		Args:            args,
		Env:             c.env(image.Env, home),
		Cwd:             dir,
		Capabilities:    &specs.LinuxCapabilities{Bounding: capabilities()},
		NoNewPrivileges: true,
	}
	if user.UID == 0 { // anybody else could only use them through a file that raises privileges, and none does
		p.Capabilities.Effective, p.Capabilities.Permitted = capabilities(), capabilities()
	}
	if caller, err := console.ConsoleFromFile(os.Stdin); c.Terminal && err == nil {
		if size, err := caller.Size(); err == nil {
			p.ConsoleSize = &specs.Box{Height: uint(size.Height), Width: uint(size.Width)}
		}
	}
	if err := errors.Join(checkText("argument", p.Args...), checkText("working directory", p.Cwd), checkVariables(p.Env)); err != nil {
		return nil, err
	}
	return p, checkProgram(c, p)
}

// newResources checks the limits and puts them into a specification's words. Devices are closed but for those that every runtime opens:
// null, zero, full, random, urandom, tty and terminals.
func newResources(c Config) (*specs.LinuxResources, error) {
	pids := c.Pids
	if pids < 0 {
		return nil, fmt.Errorf("process limit %d: want a positive number", pids)
	}
	if pids == 0 {
		pids = defaultPids
	}
	r := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
		Pids:    &specs.LinuxPids{Limit: &pids},
	}
	if c.Memory != 0 {
		if c.Memory < minMemory { // docker's limit too: a runtime cannot start in less
			return nil, fmt.Errorf("memory limit %d bytes: want at least %d MiB", c.Memory, minMemory>>20)
		}
		r.Memory = &specs.LinuxMemory{Limit: &c.Memory}
	}
	if c.CPUs != 0 {
		period := c.Period
		if period == 0 {
			period = maxPeriod
		}
		if period < minPeriod || period > maxPeriod {
			return nil, fmt.Errorf("CPU period %v: want %v to %v", period, minPeriod, maxPeriod)
		}
		micros := uint64(period.Microseconds())
		quota := math.Round(c.CPUs * float64(micros))
		if !(quota >= 1000 && quota <= 1e12) { // the kernel's least quota is 1 ms; not a number fails too
			return nil, fmt.Errorf("CPU limit %g: want at least %g cores", c.CPUs, 1000/float64(micros))
		}
		q := int64(quota)
		r.CPU = &specs.LinuxCPU{Period: &micros, Quota: &q}
	}
	return r, nil
}

func namespaces(hostNetwork bool) []specs.LinuxNamespace {
	all := []specs.LinuxNamespace{
		{Type: specs.UserNamespace}, {Type: specs.PIDNamespace}, {Type: specs.MountNamespace},
		{Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.CgroupNamespace},
	}
	if !hostNetwork {
		all = append(all, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	return all
}

// capabilities are docker's default ones. They hold inside the user namespace only.
func capabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

// maskedPaths are docker's: what they show is the host's, or changes it.
func maskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
}

var errNoCommand = errors.New("no command: the image names none, give one after the image")
