package invokewire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
)

// pipe gives two ends that speak to each other.
func pipe(t *testing.T) (worker, inside *Frames) {
	t.Helper()
	a, b := net.Pipe()
	t.Cleanup(func() { _ = errors.Join(a.Close(), b.Close()) })
	return NewFrames(a), NewFrames(b)
}

// raw is a frame as it lies on the wire.
func raw(kind Kind, data string) string {
	head := binary.BigEndian.AppendUint32([]byte{byte(kind)}, uint32(len(data)))
	return string(head) + data
}

// reading gives what reads those bytes.
func reading(wire string) *Frames {
	return NewFrames(struct {
		io.Reader
		io.Writer
	}{strings.NewReader(wire), io.Discard})
}

// The layout is a contract with what runs in instances already.
func TestFrameBytes(t *testing.T) {
	var out bytes.Buffer
	f := NewFrames(&out)
	err := errors.Join(f.WriteJSON(FrameDone, Done{"r"}), f.Write(FrameResetDone, nil), f.WriteLog("ext", []byte("hi\n")), f.WriteLog("", nil),
		f.WriteJSON(FrameShutdown, Stop{"spindown", 300}))
	want := "H\x00\x00\x00\x11" + `{"RequestID":"r"}` + "J\x00\x00\x00\x00" + "B\x00\x00\x00\x07\x03exthi\n" + "B\x00\x00\x00\x01\x00" +
		"\x05\x00\x00\x00\x23" + `{"Reason":"spindown","GraceMs":300}`
	if err != nil || out.String() != want {
		t.Errorf("%q, %v\nwant %q", out.String(), err, want)
	}
}

func TestKindNames(t *testing.T) {
	names := map[string]bool{}
	for k := range 256 {
		if s := Kind(k).String(); names[s] {
			t.Errorf("two kinds are called %s", s)
		} else {
			names[s] = true
		}
	}
	if FrameSetup.String() != "setup" || FrameResetDone.String() != "reset-done" || Kind(200).String() != "kind 200" {
		t.Error(FrameSetup, FrameResetDone, Kind(200))
	}
}

// Each message comes out as it went in.
func TestMessages(t *testing.T) {
	for kind, in := range map[Kind]any{
		FrameSetup: &Setup{Argv: []string{"/b", ""}, Env: []string{"A=\u2028<>"}, Workdir: "/w", UID: 1000, GID: 1 << 31, Files: 9,
			Extensions: "/opt/extensions", API: "127.0.0.1:1", Function: "f", Version: "$LATEST", MaxStreamed: 1 << 40},
		FrameInvoke:   &Invoke{RequestID: "r", DeadlineMs: 1 << 52, ARN: "arn", ClientContext: `{"a":"\n"}`, Streaming: true, Length: MaxPayload},
		FrameShutdown: &Stop{"timeout", 2000},
		FrameHello:    &Hello{FrameProtocol, "idle"},
		FrameInitDone: &InitDone{Extensions: []Extension{{"x", true, "Ready", []string{"INVOKE"}}}},
		FrameInitFailed: &InitFailed{ErrorType: "Runtime.ExitError", Body: []byte("{}\x00\xff"), Cause: "c",
			Exit: &Exited{Name: "n", Status: -1, Signal: 9, Core: true}},
		FrameBegin:  &Begin{"r", "text/plain", true, "Function.X"},
		FrameEnd:    &End{"Function.X", []byte("{}")},
		FrameExited: &Exited{Status: 127},
	} {
		t.Run(kind.String(), func(t *testing.T) {
			var wire bytes.Buffer
			f := NewFrames(&wire)
			if err := f.WriteJSON(kind, in); err != nil {
				t.Fatal(err)
			}
			frame, err := f.Read()
			out := reflect.New(reflect.TypeOf(in).Elem())
			if err != nil || frame.Kind != kind {
				t.Fatalf("%v, %v", frame.Kind, err)
			}
			if err := frame.Decode(out.Interface()); err != nil || !reflect.DeepEqual(in, out.Interface()) {
				t.Errorf("%+v, %v, want %+v", out, err, in)
			}
		})
	}
}

func TestInvokePayload(t *testing.T) {
	for _, n := range []int{0, 1, MaxFrame, MaxFrame + 1, MaxPayload} {
		worker, inside := pipe(t)
		payload := bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n]
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := worker.WriteInvoke(Invoke{RequestID: "r"}, payload); err != nil {
				t.Error(err)
			}
		})
		var i Invoke
		frame, err := inside.Read()
		if err = errors.Join(err, frame.Decode(&i)); err != nil || i.Length != n {
			t.Fatalf("%+v, %v", i, err)
		}
		got := make([]byte, i.Length)
		if err := inside.ReadPayload(got); err != nil || !bytes.Equal(got, payload) {
			t.Errorf("%d bytes: %v", n, err)
		}
		wg.Wait()
	}
	worker, _ := pipe(t)
	if err := worker.WriteInvoke(Invoke{}, make([]byte, MaxPayload+1)); !errors.Is(err, ErrFrame) {
		t.Error(err)
	}
}

func TestPayloadRefused(t *testing.T) {
	for what, wire := range map[string]string{
		"another kind": raw(FrameReset, "{}"),
		"too much":     raw(FramePayload, "12345"),
		"none":         raw(FramePayload, ""),
		"its end":      raw(FramePayload, "123"),
		"cut":          raw(FramePayload, "1234")[:7],
	} {
		if err := reading(wire).ReadPayload(make([]byte, 4)); err == nil || err == io.EOF {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// What is held goes with what comes next, in order; large frames do not wait.
func TestHold(t *testing.T) {
	var wire bytes.Buffer
	f := NewFrames(&wire)
	if err := f.Hold(FrameBegin, []byte("{}")); err != nil || wire.Len() != 0 {
		t.Errorf("%v, %d bytes", err, wire.Len())
	}
	if err := f.Write(FrameEnd, []byte("{}")); err != nil || wire.String() != raw(FrameBegin, "{}")+raw(FrameEnd, "{}") {
		t.Errorf("%v, %q", err, wire.String())
	}
	if err := f.Hold(FrameData, make([]byte, MaxFrame)); err != nil || wire.Len() < MaxFrame {
		t.Errorf("%v, %d bytes", err, wire.Len())
	}
	if err := f.Hold(FrameData, make([]byte, MaxFrame+1)); !errors.Is(err, ErrFrame) {
		t.Error(err)
	}
}

// Frames of many writers lie whole beside each other.
func TestWritersAtOnce(t *testing.T) {
	worker, inside := pipe(t)
	const writers, each = 8, 50
	var wg sync.WaitGroup
	for w := range writers {
		name := fmt.Sprint("extension", w)
		wg.Go(func() {
			for range each {
				if err := inside.WriteLog(name, []byte(strings.Repeat(name+"\n", 1000))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range writers * each {
		frame, err := worker.Read()
		if err != nil {
			t.Fatal(err)
		}
		name, text, err := frame.Log()
		if err != nil || string(text) != strings.Repeat(name+"\n", 1000) {
			t.Fatalf("%s: %v", name, err)
		}
	}
	wg.Wait()
}

func TestFramesRefused(t *testing.T) {
	huge := []byte{byte(FrameData), 0xff, 0xff, 0xff, 0xff}
	for what, wire := range map[string]string{
		"no kind":         raw(0, ""),
		"unknown kind":    raw(64, ""),
		"high kind":       raw(255, ""),
		"huge":            string(huge),
		"a byte too many": raw(FrameSetup, strings.Repeat(" ", MaxFrame+1)),
		"a long log":      raw(FrameLog, "\x00"+strings.Repeat("x", 256+MaxLog)),
		"more than none":  raw(FrameResetDone, "x"),
	} {
		if _, err := reading(wire).Read(); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for n := range len(raw(FrameDone, "{}")) {
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if _, err := reading(raw(FrameDone, "{}")[:n]).Read(); err != want {
			t.Errorf("%d bytes: %v, want %v", n, err, want)
		}
	}
}

func TestWriteRefused(t *testing.T) {
	f := NewFrames(new(bytes.Buffer))
	for what, err := range map[string]error{
		"a long frame": f.Write(FrameSetup, make([]byte, MaxFrame+1)),
		"a long log":   f.WriteLog("", make([]byte, MaxLog+256)),
		"a long name":  f.WriteLog(strings.Repeat("n", 256), nil),
		"no kind":      f.Write(7, nil),
	} {
		if !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// What cannot be read is named without what it holds.
func TestDecodeRefused(t *testing.T) {
	for what, c := range map[string]struct {
		text string
		into any
	}{
		"no JSON":          {`{"Env":["SECRET"`, new(Setup)},
		"another type":     {`{"Env":"SECRET"}`, new(Setup)},
		"unknown":          {`{"Environment":["SECRET"]}`, new(Setup)},
		"two":              {`{"Env":["SECRET"]}{}`, new(Setup)},
		"negative user":    {`{"UID":-1}`, new(Setup)},
		"negative length":  {`{"Length":-1}`, new(Invoke)},
		"a longer payload": {fmt.Sprintf(`{"Length":%d}`, MaxPayload+1), new(Invoke)},
		"nothing":          {``, new(Stop)},
	} {
		err := Frame{FrameSetup, []byte(c.text)}.Decode(c.into)
		if !errors.Is(err, ErrFrame) || strings.Contains(err.Error(), "SECRET") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, data := range []string{"", "\x02a", "\xff" + strings.Repeat("n", 254), "\x00" + strings.Repeat("x", MaxLog+1)} {
		if _, _, err := (Frame{FrameLog, []byte(data)}).Log(); !errors.Is(err, ErrFrame) {
			t.Errorf("a log of %d bytes: %v", len(data), err)
		}
	}
}

// The runtime has no name, and an extension's comes whole.
func TestLogNames(t *testing.T) {
	for _, name := range []string{"", "a", strings.Repeat("n", 255)} {
		var wire bytes.Buffer
		f := NewFrames(&wire)
		if err := f.WriteLog(name, make([]byte, MaxLog)); err != nil {
			t.Fatal(err)
		}
		frame, err := f.Read()
		if got, text, logErr := frame.Log(); errors.Join(err, logErr) != nil || got != name || len(text) != MaxLog {
			t.Errorf("%q with %d bytes, %v, %v", got, len(text), err, logErr)
		}
	}
}

// A second connection starts afresh, whatever the first was in.
func TestRedial(t *testing.T) {
	worker, inside := pipe(t)
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = inside.out.Write([]byte(raw(FrameLog, "half")[:6])); _ = inside.out.Flush() })
	_, _ = worker.in.Peek(6)
	wg.Wait()
	worker, inside = pipe(t)
	wg.Go(func() { _ = inside.WriteJSON(FrameHello, Hello{FrameProtocol, "idle"}) })
	frame, err := worker.Read()
	if err != nil || frame.Kind != FrameHello {
		t.Error(frame, err)
	}
	wg.Wait()
}

// No verb prints what is secret.
func TestSecretsHidden(t *testing.T) {
	setup := Setup{Env: []string{"KEY=SECRET"}}
	spec := Spec{Account: "1", Function: "f", Version: "2", Revision: "3", Env: map[string]string{"KEY": "SECRET"}, Keys: Keys{Secret: "SECRET"}}
	for _, v := range []any{setup, &setup, spec, &spec, []any{spec, setup}, struct{ S Spec }{spec}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			if got := fmt.Sprintf(verb, v); strings.Contains(got, "SECRET") || strings.Contains(got, "534543524554") || strings.Contains(got, "83 69 67") {
				t.Errorf("%s: %s", verb, got)
			}
		}
	}
	if got := fmt.Sprint(spec); got != "invokewire.Spec{1/f/2/3}" {
		t.Error(got)
	}
}

func FuzzFrames(f *testing.F) {
	for kind := range 256 {
		f.Add([]byte(raw(Kind(kind), "")))
	}
	f.Add([]byte(raw(FrameSetup, `{"Argv":["a"]}`) + raw(FrameInvoke, `{"Length":3}`) + raw(FramePayload, "abc")))
	f.Add([]byte(raw(FrameLog, "\x03exthi\n") + raw(FrameExited, `{"Status":-1,"Signal":9}`) + raw(FrameResetDone, "")))
	f.Add([]byte{byte(FrameData), 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, wire []byte) {
		in := reading(string(wire))
		var again bytes.Buffer
		out := NewFrames(&again)
		for {
			frame, err := in.Read()
			if err != nil {
				break
			}
			if err := out.Write(frame.Kind, frame.Data); err != nil {
				t.Fatalf("what was read cannot be written: %v", err)
			}
			for _, v := range []any{new(Setup), new(Invoke), new(Stop), new(Hello), new(InitDone), new(InitFailed), new(Begin), new(End), new(Done), new(Exited)} {
				_ = frame.Decode(v)
			}
			if name, text, err := frame.Log(); err == nil && 1+len(name)+len(text) != len(frame.Data) {
				t.Errorf("a log of %d bytes has %q and %d", len(frame.Data), name, len(text))
			}
		}
		if !bytes.HasPrefix(wire, again.Bytes()) {
			t.Error("what was read is written otherwise")
		}
	})
}

// Wherever a connection breaks off, the frames before are whole, and only between
// two of them is its end an end.
func TestCutFrames(t *testing.T) {
	var all bytes.Buffer
	f, ends := NewFrames(&all), map[int]int{0: 0} // how many frames end at a byte
	for n, data := range []string{`{"RequestID":"r"}`, "some data", "", "{}"} {
		if err := f.Write([]Kind{FrameBegin, FrameData, FrameResetDone, FrameEnd}[n], []byte(data)); err != nil {
			t.Fatal(err)
		}
		ends[all.Len()] = n + 1
	}
	for cut := range all.Len() + 1 {
		in, frames := NewFrames(bytes.NewBuffer(bytes.Clone(all.Bytes()[:cut]))), 0
		_, err := in.Read()
		for ; err == nil; frames++ {
			_, err = in.Read()
		}
		if whole, between := ends[cut]; between && (frames != whole || err != io.EOF) || !between && err != io.ErrUnexpectedEOF {
			t.Errorf("cut after %d bytes: %d frames, then %v", cut, frames, err)
		}
	}
}
