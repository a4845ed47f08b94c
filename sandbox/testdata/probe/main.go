// Probe is the program of the tests' root file system: it tells what an instance sees, or does what the tests need done inside.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

func main() {
	verb, args := os.Args[1], os.Args[2:]
	switch verb {
	case "exit":
		os.Exit(number(args[0]))
	case "look":
		look()
	case "read": // FILE…: their contents
		for _, name := range args {
			data, err := os.ReadFile(name)
			check(err)
			os.Stdout.Write(data)
		}
	case "write": // FILE TEXT, as programs do that log to /dev/stdout
		f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
		check(err)
		_, err = f.WriteString(args[1])
		check(err)
	case "say3": // TEXT, to descriptor 3
		_, _ = fmt.Fprintln(os.NewFile(3, "3"), os.Args[2])
	case "told3": // FILE…: their contents to descriptor 3, once it is told to there
		socket := os.NewFile(3, "3")
		_, err := socket.Read(make([]byte, 1))
		check(err)
		for _, name := range args {
			data, err := os.ReadFile(name)
			if err != nil {
				data = []byte(err.Error() + "\n")
			}
			_, err = socket.Write(data)
			check(err)
		}
	case "turns": // FILE N: lines to standard output and to FILE, in turn
		f, err := os.OpenFile(args[0], os.O_WRONLY, 0)
		check(err)
		for i := range number(args[1]) {
			fmt.Println("out", i)
			fmt.Fprintln(f, "err", i)
		}
	case "cat":
		in := bufio.NewReader(os.Stdin)
		_, err := in.WriteTo(os.Stdout)
		check(err)
	case "eat": // MEBIBYTES
		b := make([]byte, number(args[0])<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		fmt.Println("ate", len(b)>>20)
	case "fork": // N children at once; says how many there were
		n := 0
		for ; n < number(args[0]); n++ {
			cmd := exec.Command(os.Args[0], "cat")
			if _, err := cmd.StdinPipe(); err != nil || cmd.Start() != nil {
				break
			}
		}
		fmt.Println("forked", n)
	case "wait": // until a signal that exits with its number
		wait(false)
	case "stubborn": // tells its signals and goes on
		wait(true)
	case "tty":
		tty()
	case "orphan": // leaves a child behind
		cmd := exec.Command(os.Args[0], "wait")
		cmd.Stdout = os.Stdout
		check(cmd.Start())
	default:
		check(fmt.Errorf("unknown verb %s", verb))
	}
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	check(err)
	return n
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(3)
	}
}

func look() {
	seen := map[string]any{"args": os.Args, "env": os.Environ(), "uid": os.Getuid(), "gid": os.Getgid(), "pid": os.Getpid()}
	seen["dir"], _ = os.Getwd()
	seen["host"], _ = os.Hostname()
	seen["groups"], _ = os.Getgroups()
	seen["net"], _ = os.Readlink("/proc/self/ns/net")
	status := map[string]string{}
	data, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(data)) {
		k, v, _ := strings.Cut(line, ":")
		status[k] = strings.TrimSpace(v)
	}
	seen["status"] = status
	data, _ = os.ReadFile("/proc/self/uid_map")
	seen["uid_map"] = strings.Fields(string(data))
	data, _ = os.ReadFile("/proc/self/gid_map")
	seen["gid_map"] = strings.Fields(string(data))
	data, _ = os.ReadFile("/proc/self/mounts")
	seen["mounts"] = strings.Split(strings.TrimSpace(string(data)), "\n")
	links := map[string]bool{}
	all, _ := net.Interfaces()
	for _, i := range all {
		links[i.Name] = i.Flags&net.FlagUp != 0
	}
	seen["links"] = links
	seen["unshare"] = fmt.Sprint(syscall.Unshare(syscall.CLONE_NEWUSER))
	check(json.NewEncoder(os.Stdout).Encode(seen))
}

func wait(stubborn bool) {
	c := make(chan os.Signal, 10)
	signal.Notify(c)
	fmt.Println("ready")
	for s := range c {
		if s == syscall.SIGURG || s == syscall.SIGCHLD {
			continue
		}
		fmt.Println("got", int(s.(syscall.Signal)))
		if !stubborn {
			os.Exit(int(s.(syscall.Signal)))
		}
	}
}

func size() string {
	var s [4]uint16
	_, _, e := syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&s)))
	if e != 0 {
		return e.Error()
	}
	return fmt.Sprint(s[0], "x", s[1])
}

func tty() {
	c := make(chan os.Signal, 10)
	signal.Notify(c, syscall.SIGWINCH, syscall.SIGINT)
	fmt.Println("size", size())
	go func() {
		for s := range c {
			if s == syscall.SIGINT {
				fmt.Println("interrupted")
				continue
			}
			fmt.Println("resized", size())
		}
	}()
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		fmt.Println("line", in.Text())
	}
	fmt.Println("end")
	os.Exit(5)
}
