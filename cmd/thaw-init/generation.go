package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"thaw/invokewire"
	"thaw/runtimeapi"
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// runtimeShare of the time to end is the runtime's: extensions need the rest to
	// send what they have of it.
	runtimeShare = 0.3
	// maxGrace bounds the time to end, whatever the worker says.
	maxGrace = time.Minute
)

// sink tells the worker what the API is told.
func (g *generation) sink() runtimeapi.Sink {
	return runtimeapi.Sink{
		InitDone: func() {
			g.flush()
			g.phase.Store(phaseIdle)
			_ = g.link.sendJSON(invokewire.FrameInitDone, invokewire.InitDone{Extensions: g.extensions()})
		},
		InitFailed: func(errorType string, body []byte) {
			g.flush()
			g.failed(invokewire.InitFailed{ErrorType: errorType, Body: body})
		},
		Begin: func(b runtimeapi.Begin) error {
			text, err := json.Marshal(invokewire.Begin(b))
			return errors.Join(err, g.part(invokewire.FrameBegin, text))
		},
		Data: func(p []byte) error { return g.part(invokewire.FrameData, p) },
		End: func(e runtimeapi.End) error {
			return g.link.sendJSON(invokewire.FrameEnd, invokewire.End{ErrorType: e.ErrorType, ErrorBody: e.Body})
		},
		Done: func(id string) {
			g.flush()
			g.phase.Store(phaseIdle)
			_ = g.link.sendJSON(invokewire.FrameDone, invokewire.Done{RequestID: id})
		},
	}
}

// part sends a part of an answer: at once if its caller takes it as it comes, in
// whichever mode the runtime gives it, since not all say; else with its end.
func (g *generation) part(kind invokewire.Kind, data []byte) error {
	return g.link.send(func(f *invokewire.Frames) error {
		if g.streaming.Load() {
			return f.Write(kind, data)
		}
		for len(data) > invokewire.MaxFrame {
			if err := f.Hold(kind, data[:invokewire.MaxFrame]); err != nil {
				return err
			}
			data = data[invokewire.MaxFrame:]
		}
		return f.Hold(kind, data)
	})
}

func (g *generation) failed(f invokewire.InitFailed) {
	f.Extensions = g.extensions()
	_ = g.link.sendJSON(invokewire.FrameInitFailed, f)
}

func (g *generation) extensions() []invokewire.Extension {
	var list []invokewire.Extension
	for _, e := range g.api.Extensions() {
		list = append(list, invokewire.Extension(e))
	}
	return list
}

// flush sends what processes have written until now.
func (g *generation) flush() {
	for _, p := range g.processes() {
		p.out.flush()
	}
}

// processes are those that were started, ended ones too.
func (g *generation) processes() []*process {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.procs[:len(g.procs):len(g.procs)]
}

// signal sends a signal to the processes of that name.
func (g *generation) signal(name string, s syscall.Signal) {
	for _, p := range g.processes() {
		if p.name == name {
			g.instance.procs.kill(p, s)
		}
	}
}

// extensionNames lists the external extensions of a folder.
func extensionNames(dir string) ([]string, error) {
	if dir == "" {
		return nil, nil
	}
	items, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, item := range items {
		if !item.IsDir() {
			names = append(names, item.Name())
		}
	}
	if len(names) > runtimeapi.MaxExtensions {
		return nil, fmt.Errorf("%s holds %d extensions, at most %d may be", dir, len(names), runtimeapi.MaxExtensions)
	}
	return names, nil
}

// start starts the extensions, and the runtime once they have registered. err is
// that of looking for them.
func (g *generation) start(names []string, err error) {
	for _, name := range names {
		if err == nil {
			err = g.launch(program{name: name, argv: []string{filepath.Join(g.setup.Extensions, name)}, env: g.setup.ExtensionEnv, dir: "/"})
		}
	}
	if err != nil {
		g.refused("Extension.LaunchError", err)
		return
	}
	select {
	case <-g.api.Registered():
	case <-g.stop:
		return
	}
	dir := g.setup.Workdir
	if dir == "" {
		dir = "/"
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		g.refused("Runtime.InvalidWorkingDir", fmt.Errorf("chdir %s: no such directory", dir))
		return
	}
	argv := append([]string(nil), g.setup.Argv...)
	if argv[0], err = find(argv[0], g.setup.Env); err == nil {
		err = g.launch(program{argv: argv, env: g.setup.Env, dir: dir})
	}
	if err != nil {
		g.refused("Runtime.InvalidEntrypoint", err)
	}
}

// find looks a program up as a shell does.
func find(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := defaultPath
	for _, v := range env {
		if value, ok := strings.CutPrefix(v, "PATH="); ok {
			path = value
		}
	}
	for _, dir := range filepath.SplitList(path) {
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return file, nil
		}
	}
	return "", fmt.Errorf("exec: %q: executable file not found in $PATH", name)
}

// refused tells of an init that fails before there is a process that could.
func (g *generation) refused(errorType string, err error) {
	if g.api.FailInit() {
		g.flush()
		g.failed(invokewire.InitFailed{ErrorType: errorType, Cause: err.Error()})
	}
}

// launch starts a process and has its end awaited.
func (g *generation) launch(p program) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		return errOver
	}
	p.uid, p.gid = g.setup.UID, g.setup.GID
	proc, err := g.instance.procs.start(p, func(name string, text []byte) error {
		return g.link.send(func(f *invokewire.Frames) error { return f.WriteLog(name, text) })
	})
	if err != nil {
		return err
	}
	g.procs = append(g.procs, proc)
	g.work.Go(func() { g.await(proc) })
	return nil
}

// await tells the worker of a process's end, after what it has written.
func (g *generation) await(p *process) {
	<-p.done
	p.out.flush()
	e := invokewire.Exited{Name: p.name, Status: p.status.ExitStatus()}
	if p.status.Signaled() {
		e.Signal, e.Core = int(p.status.Signal()), p.status.CoreDump()
	}
	select {
	case <-g.stop: // it was told to
	default:
		e.ErrorType = g.api.Exited(p.name)
		if g.api.FailInit() {
			g.failed(invokewire.InitFailed{ErrorType: e.ErrorType, Exit: &e})
		}
	}
	_ = g.link.sendJSON(invokewire.FrameExited, e)
}

// end ends all processes, in the order and time that they are given.
func (i *instance) end(s invokewire.Stop) {
	i.phase.Store(phaseEnding)
	g := i.current.Load()
	if g == nil {
		return
	}
	close(g.stop)
	g.mu.Lock()
	g.ended = true
	g.mu.Unlock()
	grace := time.Duration(min(max(s.GraceMs, 0), maxGrace.Milliseconds())) * time.Millisecond
	if grace > 0 && len(g.api.Extensions()) > 0 {
		g.bow(s.Reason, grace)
	}
	g.api.Close()
	i.procs.killAll()
	g.work.Wait()
	for _, p := range g.processes() {
		<-p.out.done // all who could write are gone
	}
	i.current.Store(nil)
}

// bow lets the runtime end first, and then the extensions that asked to know.
func (g *generation) bow(reason string, grace time.Duration) {
	deadline := time.Now().Add(grace)
	g.signal("", syscall.SIGTERM)
	g.gone([]string{""}, time.Now().Add(time.Duration(float64(grace)*runtimeShare)))
	g.signal("", syscall.SIGKILL)
	told := g.api.Shutdown(reason, deadline.UnixMilli())
	for _, e := range g.api.Extensions() {
		if !e.Internal && !slices.Contains(told, e.Name) {
			g.signal(e.Name, syscall.SIGKILL)
		}
	}
	g.gone(told, deadline)
}

// gone waits until the processes of these names have ended, or a time comes.
func (g *generation) gone(names []string, until time.Time) {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	for _, p := range g.processes() {
		if !slices.Contains(names, p.name) {
			continue
		}
		select {
		case <-p.done:
		case <-timer.C:
			return
		}
	}
}
