// Inside is the program of the images that tests run. Called as true it does
// nothing.
package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	if filepath.Base(os.Args[0]) == "true" {
		return
	}
	if len(os.Args) < 2 {
		fmt.Println("inside")
		return
	}
	switch args := os.Args[2:]; os.Args[1] {
	case "exit":
		code, _ := strconv.Atoi(args[0])
		os.Exit(code)
	case "signal": // waits for one, and tells it
		c := make(chan os.Signal, 1)
		signal.Notify(c)
		fmt.Println("ready")
		for s := range c {
			if s != syscall.SIGURG {
				fmt.Println(s)
				os.Exit(42)
			}
		}
	case "eat":
		n, _ := strconv.Atoi(args[0])
		b := make([]byte, n<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		fmt.Println("ate", len(b))
	case "serve": // a command a line, an answer a line
		fmt.Println("ready")
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			f := strings.Fields(in.Text())
			fmt.Println(answer(f[0], f[1:]))
		}
	default:
		fmt.Println(answer(os.Args[1], args))
	}
}

// answer does one thing, and gives a line.
func answer(verb string, args []string) string {
	text, err := do(verb, args)
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return "error: " + errno.Error()
	}
	if err != nil {
		return "error: " + err.Error()
	}
	return strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "|")
}

func do(verb string, args []string) (string, error) {
	switch verb {
	case "echo":
		return strings.Join(args, " "), nil
	case "env":
		v, ok := os.LookupEnv(args[0])
		if !ok {
			return "", errors.New("unset")
		}
		return v, nil
	case "pwd":
		return os.Getwd()
	case "id":
		return fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()), nil
	case "ls":
		items, err := os.ReadDir(args[0])
		var names []string
		for _, i := range items {
			names = append(names, i.Name())
		}
		return strings.Join(names, " "), err
	case "net":
		all, err := net.Interfaces()
		var names []string
		for _, i := range all {
			names = append(names, i.Name)
		}
		return strings.Join(names, " "), err
	case "size": // of the terminal
		var size [4]uint16
		if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size))); e != 0 {
			return "", e
		}
		return fmt.Sprintf("%dx%d", size[0], size[1]), nil
	case "stdin":
		b, err := io.ReadAll(os.Stdin)
		return string(b), err
	case "cat":
		b, err := os.ReadFile(args[0])
		return string(b), err
	case "sum": // of the last file's bytes from the disk, not the page cache's
		var last string
		var err error
		for _, name := range args {
			if last, err = sum(name); err != nil {
				break
			}
		}
		return last, err
	case "files": // waits until so many are below a folder
		want, _ := strconv.Atoi(args[1])
		return "there", await(func() bool { return count(args[0]) >= want })
	case "write":
		return "written", os.WriteFile(args[0], []byte(strings.Join(args[1:], " ")), 0o644)
	}
	return "", errors.New("no verb " + verb)
}

func sum(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	const dontNeed = 4 // POSIX_FADV_DONTNEED
	if _, _, e := syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, dontNeed, 0, 0); e != 0 {
		return "", e
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// await waits until something is so.
func await(so func() bool) error {
	for late, tick := time.After(time.Minute), time.Tick(10*time.Millisecond); !so(); <-tick {
		select {
		case <-late:
			return errors.New("it never was so")
		default:
		}
	}
	return nil
}

// count counts the files below a folder.
func count(dir string) (n int) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			n++
		}
		return nil
	})
	return n
}
