package invokewire

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"
)

// Frames are what a worker and the thaw-init of one of its instances say to each
// other, over one stream socket. A frame is
//
//	byte  0      kind
//	bytes 1–4    n, the length of the data, big-endian, at most MaxFrame
//	bytes 5–4+n  data
//
// A worker says, each with JSON unless said otherwise:
//
//	setup     Setup: start extensions and the runtime. Again only after a reset.
//	invoke    Invoke; its Length bytes follow at once in payload frames
//	payload   bytes
//	reset     Stop: end all processes but thaw-init; it answers reset-done
//	shutdown  Stop: the same, then thaw-init exits
//
// Thaw-init says:
//
//	hello        Hello: first on each connection
//	log          one byte m, m bytes of the name of who wrote (none: the runtime, else an
//	             extension), then what it wrote: whole lines, but for lines longer than
//	             MaxLog and last ones
//	init-done    InitDone
//	init-failed  InitFailed; one of the two ends each init
//	begin        Begin: the function has begun to answer, or has failed
//	data         bytes of that answer
//	end          End: the answer is whole, or broken
//	done         Done: runtime and extensions wait for the next invoke. What they
//	             have logged until then has been sent.
//	exited       Exited: a process that setup started has ended; in an init before or
//	             after what ends that
//	reset-done   nothing: all processes are gone, and their logs sent
//
// An invoke's answer is begin, data…, end; done comes after end. If a process ends that
// should not, exited comes instead of what is missing. There is one invoke at a
// time; after a reset there is none, and none of its frames come after reset-done.
//
// Nothing is remembered for a connection: after one has ended, both may go on with
// a new one, and what was under way on the old one is lost.
//
// Read is for one goroutine at a time, Write for any number.
type Frames struct {
	in   *bufio.Reader
	data []byte

	mu  sync.Mutex // guards out: a frame is written whole
	out *bufio.Writer
}

// Kind says what a frame is.
type Kind byte

// Kinds of frames.
const (
	FrameSetup Kind = 1 + iota
	FrameInvoke
	FramePayload
	FrameReset
	FrameShutdown
)

// Kinds of frames that thaw-init sends.
const (
	FrameHello Kind = 65 + iota
	FrameLog
	FrameInitDone
	FrameInitFailed
	FrameBegin
	FrameData
	FrameEnd
	FrameDone
	FrameExited
	FrameResetDone
)

const (
	// MaxFrame bounds a frame's data in bytes: one is held in memory on each side.
	MaxFrame = 1 << 20
	// MaxPayload bounds an invoke's payload in bytes, and an answer's that is not
	// streamed: 6 MiB and 100 bytes, as Lambda has it.
	MaxPayload = 6<<20 + 100
	// MaxLog bounds the bytes of log in one frame. Longer lines are cut.
	MaxLog = 64 << 10
	// MaxErrorBody bounds the JSON of an error in InitFailed and End, in bytes; it
	// fits a frame as base64.
	MaxErrorBody = 512 << 10

	frameHeader = 5
	// frameBuffer holds most frames, so that one write sends them.
	frameBuffer = 32 << 10
)

// ErrFrame is wrapped by errors of what is no frame, or not the right one. The
// connection is of no further use.
var ErrFrame = errors.New("invokewire: bad frame")

var kindNames = [...]string{
	FrameSetup: "setup", FrameInvoke: "invoke", FramePayload: "payload", FrameReset: "reset", FrameShutdown: "shutdown",
	FrameHello: "hello", FrameLog: "log", FrameInitDone: "init-done", FrameInitFailed: "init-failed", FrameBegin: "begin",
	FrameData: "data", FrameEnd: "end", FrameDone: "done", FrameExited: "exited", FrameResetDone: "reset-done",
}

// String gives the kind's name.
func (k Kind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", byte(k))
}

// Setup is all that an instance's processes need. It holds secrets: no verb
// prints it.
type Setup struct {
	// Argv is the runtime's; a first word without a slash is looked up in Env's PATH.
	Argv    []string
	Env     []string // of the runtime, whole
	Workdir string   // of the runtime; empty: /, as extensions have it
	// UID and GID are those of all processes, neither of them thaw-init's own.
	UID, GID uint32
	// Files is each process's limit of open files, at least 256; 0: 1024.
	Files int `json:",omitempty"`

	// Extensions is the folder whose executables are started first, as
	// extensions; empty or not there: none.
	Extensions   string   `json:",omitempty"`
	ExtensionEnv []string `json:",omitempty"` // whole

	// API is where the Runtime API listens; empty: 127.0.0.1:9001.
	API string `json:",omitempty"`
	// What extensions are told when they register.
	Function, Version, Handler, Account string `json:",omitempty"`
	// MaxStreamed bounds the bytes of an answer that is streamed to its caller; 0: 200 MiB.
	MaxStreamed int64 `json:",omitempty"`
}

// Format hides a Setup from every verb.
func (s Setup) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "invokewire.Setup{…}") }

// Invoke is one invoke, but for its payload.
type Invoke struct {
	RequestID  string
	DeadlineMs int64 // ms since 1970: when the function must be done
	ARN        string
	Trace      string `json:",omitempty"`
	// ClientContext is JSON, as the function sees it.
	ClientContext string `json:",omitempty"`
	Cognito       string `json:",omitempty"` // JSON of the identity
	// Streaming says that the caller takes the answer as it comes, and may get
	// more than MaxPayload.
	Streaming bool `json:",omitempty"`
	Length    int  // of the payload, in bytes, at most MaxPayload
}

// Stop says how processes are ended: SIGTERM to the runtime if there are
// extensions, a SHUTDOWN event to those that asked for it, and SIGKILL to all that
// are left after Grace. A grace of 0 kills at once.
type Stop struct {
	Reason  string // spindown, timeout or failure
	GraceMs int64
}

// Hello says who speaks.
type Hello struct {
	Protocol int // FrameProtocol
	// Phase is fresh (waits for a setup), init, idle, busy or ending.
	Phase string
}

// FrameProtocol is the number of this protocol: worker and thaw-init must have the same.
const FrameProtocol = 1

// InitDone says that runtime and extensions wait for an invoke.
type InitDone struct {
	Extensions []Extension `json:",omitempty"`
}

// Extension is one that has registered, or was started and has not.
type Extension struct {
	Name     string
	Internal bool     `json:",omitempty"` // a part of the runtime's process
	State    string   // Started, Registered, Ready, InitError, ExitError or Exited
	Events   []string `json:",omitempty"` // INVOKE, SHUTDOWN
}

// InitFailed says why an init has ended otherwise.
type InitFailed struct {
	// ErrorType is what was posted to init/error, or Runtime.ExitError,
	// Runtime.InvalidEntrypoint, Runtime.InvalidWorkingDir, Extension.Crash,
	// Extension.LaunchError.
	ErrorType string
	// Body is the JSON that was posted, at most MaxErrorBody; empty: nothing was.
	Body []byte `json:",omitempty"`
	// Cause is one line, for what thaw-init itself met.
	Cause string `json:",omitempty"`
	// Exit is how the process ended that should not have.
	Exit       *Exited     `json:",omitempty"`
	Extensions []Extension `json:",omitempty"`
}

// Begin opens an answer.
type Begin struct {
	RequestID   string
	ContentType string `json:",omitempty"`
	// Streamed: the runtime gives it in streaming mode.
	Streamed bool `json:",omitempty"`
	// ErrorType is set if the data are an error's JSON: the function has failed.
	ErrorType string `json:",omitempty"`
}

// ErrorTruncated is the type of an answer that the runtime did not send whole. If
// that is because its process has ended, exited follows, or came before.
const ErrorTruncated = "Runtime.TruncatedResponse"

// End closes an answer. With an ErrorType the function failed after it had begun,
// or gave too much; what came before is then not all.
type End struct {
	ErrorType string `json:",omitempty"`
	// ErrorBody is the error's JSON, at most MaxErrorBody.
	ErrorBody []byte `json:",omitempty"`
}

// Done names the invoke that is over.
type Done struct{ RequestID string }

// Exited is the end of a process: of the runtime, or of an extension by its name.
type Exited struct {
	Name   string `json:",omitempty"` // of an extension
	Status int    // what it gave exit(2); -1 if Signal is set
	Signal int    `json:",omitempty"`
	Core   bool   `json:",omitempty"` // dumped
	// ErrorType is Runtime.ExitError, Extension.Crash, or Extension.InitError or
	// Extension.ExitError if it had said so; empty if it was told to end.
	ErrorType string `json:",omitempty"`
}

// String says it as Lambda does: "exit status 1" or "signal: killed".
func (e Exited) String() string {
	switch {
	case e.Signal == 0:
		return fmt.Sprintf("exit status %d", e.Status)
	case e.Core:
		return "signal: " + syscall.Signal(e.Signal).String() + " (core dumped)"
	}
	return "signal: " + syscall.Signal(e.Signal).String()
}

// NewFrames speaks over rw, which stays the caller's to close.
func NewFrames(rw io.ReadWriter) *Frames {
	return &Frames{in: bufio.NewReaderSize(rw, frameBuffer), out: bufio.NewWriterSize(rw, frameBuffer)}
}

// Frame is one frame. Its data is valid until the next Read.
type Frame struct {
	Kind Kind
	Data []byte
}

// Read gives the next frame; io.EOF at the end of the connection between two.
func (f *Frames) Read() (Frame, error) {
	head, err := f.in.Peek(frameHeader)
	if err != nil {
		if err == io.EOF && len(head) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	kind, n := Kind(head[0]), binary.BigEndian.Uint32(head[1:])
	if err := checkFrame(kind, int64(n)); err != nil {
		return Frame{}, err
	}
	_, _ = f.in.Discard(frameHeader)
	f.data = slices.Grow(f.data[:0], int(n))[:n]
	if _, err := io.ReadFull(f.in, f.data); err != nil {
		return Frame{}, unexpected(err)
	}
	return Frame{kind, f.data}, nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func checkFrame(kind Kind, n int64) error {
	most := int64(MaxFrame)
	switch {
	case int(kind) >= len(kindNames) || kindNames[kind] == "":
		return fmt.Errorf("%w: %v is none", ErrFrame, kind)
	case kind == FrameResetDone:
		most = 0
	case kind == FrameLog:
		most = 1 + 255 + MaxLog
	}
	if n > most {
		return fmt.Errorf("%w: %v of %d bytes, at most %d", ErrFrame, kind, n, most)
	}
	return nil
}

// Write sends a frame. Payload and data longer than MaxFrame go as several.
func (f *Frames) Write(kind Kind, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for first := true; first || len(data) > 0; first = false {
		part := data
		if kind == FramePayload || kind == FrameData {
			part = data[:min(len(data), MaxFrame)]
		}
		if err := f.write(kind, part, nil); err != nil {
			return err
		}
		data = data[len(part):]
	}
	return f.out.Flush()
}

// Hold writes like Write, but the frame may wait for the next Write: for one that
// comes at once, so that both are sent together.
func (f *Frames) Hold(kind Kind, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.write(kind, data, nil)
}

// WriteJSON sends a frame that holds v.
func (f *Frames) WriteJSON(kind Kind, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return f.Write(kind, data)
}

// WriteLog sends what a process wrote, at most MaxLog bytes.
func (f *Frames) WriteLog(name string, text []byte) error {
	if len(name) > 255 {
		return fmt.Errorf("%w: a name of %d bytes", ErrFrame, len(name))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.write(FrameLog, append([]byte{byte(len(name))}, name...), text); err != nil {
		return err
	}
	return f.out.Flush()
}

// write puts a frame, in two parts, behind what was not sent yet.
func (f *Frames) write(kind Kind, a, b []byte) error {
	if err := checkFrame(kind, int64(len(a)+len(b))); err != nil {
		return err
	}
	var head [frameHeader]byte
	head[0] = byte(kind)
	binary.BigEndian.PutUint32(head[1:], uint32(len(a)+len(b)))
	_, _ = f.out.Write(head[:]) // an error stays
	_, _ = f.out.Write(a)
	_, err := f.out.Write(b)
	return err
}

// ReadPayload fills p from payload frames: those of an invoke, for its receiver.
func (f *Frames) ReadPayload(p []byte) error {
	for len(p) > 0 {
		frame, err := f.Read()
		if err != nil {
			return unexpected(err)
		}
		if frame.Kind != FramePayload || len(frame.Data) == 0 || len(frame.Data) > len(p) {
			return fmt.Errorf("%w: %v of %d bytes where %d of payload are missing", ErrFrame, frame.Kind, len(frame.Data), len(p))
		}
		p = p[copy(p, frame.Data):]
	}
	return nil
}

// WriteInvoke sends an invoke and its payload, whose length it sets.
func (f *Frames) WriteInvoke(i Invoke, payload []byte) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("%w: a payload of %d bytes, at most %d", ErrFrame, len(payload), MaxPayload)
	}
	i.Length = len(payload)
	if err := f.WriteJSON(FrameInvoke, i); err != nil || len(payload) == 0 {
		return err
	}
	return f.Write(FramePayload, payload)
}

// Decode reads a frame's JSON into v, strictly.
func (f Frame) Decode(v any) error {
	d := json.NewDecoder(bytes.NewReader(f.Data))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil && d.InputOffset() != int64(len(f.Data)) {
		err = errors.New("more after it")
	}
	if i, ok := v.(*Invoke); ok && err == nil && (i.Length < 0 || i.Length > MaxPayload) {
		err = fmt.Errorf("a payload of %d bytes, at most %d", i.Length, MaxPayload)
	}
	if err != nil { // without the text, which may be secret
		return fmt.Errorf("%w: %v: %T cannot be read: %s", ErrFrame, f.Kind, v, reason(err))
	}
	return nil
}

// reason is an error of encoding/json without what it was about.
func reason(err error) string {
	if t := (*json.UnmarshalTypeError)(nil); errors.As(err, &t) {
		return "field " + t.Field + " is not " + t.Type.String()
	}
	if s := (*json.SyntaxError)(nil); errors.As(err, &s) {
		return fmt.Sprintf("bad JSON at byte %d", s.Offset)
	}
	return err.Error()
}

// Log takes a log frame apart: who wrote (empty: the runtime), and what.
func (f Frame) Log() (name string, text []byte, err error) {
	if f.Kind != FrameLog || len(f.Data) == 0 || len(f.Data) < 1+int(f.Data[0]) || len(f.Data)-1-int(f.Data[0]) > MaxLog {
		return "", nil, fmt.Errorf("%w: %v of %d bytes is no log", ErrFrame, f.Kind, len(f.Data))
	}
	n := 1 + int(f.Data[0])
	return string(f.Data[1:n]), f.Data[n:], nil
}
