package runtimeapi

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"

	"thaw/runtimeapi/http1"
)

func TestIDs(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := newID()
		if !isID(id) || seen[id] || id[14] != '4' || !strings.Contains("89ab", id[19:20]) {
			t.Fatal(id)
		}
		seen[id] = true
	}
	for _, no := range []string{"", "x", strings.Repeat("0", 36), strings.Repeat("-", 36), newID() + "0", strings.Replace(newID(), "4", "g", 1)} {
		if isID(no) {
			t.Error(no)
		}
	}
}

// An external and an internal extension through init, an invoke and shutdown.
func TestExtensions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{External: []string{"outer", "quiet"}})
		outer := b.register(t, "outer", "INVOKE", "SHUTDOWN", "INVOKE")
		select {
		case <-b.Registered():
			t.Error("one has not registered")
		default:
		}
		quiet := b.register(t, "quiet")
		<-b.Registered()
		inner := b.register(t, "inner", "INVOKE")
		next := b.begin("GET", apiRoot+"invocation/next")
		outerNext := b.begin("GET", extensionRoot+"event/next", identifierHeader, outer)
		innerNext := b.begin("GET", extensionRoot+"event/next", identifierHeader, strings.ToUpper(inner))
		b.told(t, "") // one is missing
		b.begin("GET", extensionRoot+"event/next", identifierHeader, quiet)
		b.told(t, "init-done")
		want := []Extension{{"outer", false, "Ready", []string{"INVOKE", "SHUTDOWN"}}, {"quiet", false, "Ready", nil}, {"inner", true, "Ready", []string{"INVOKE"}}}
		if got := b.Extensions(); !reflect.DeepEqual(got, want) {
			t.Errorf("%v, want %v", got, want)
		}

		if err := b.Invoke(oneInvoke); err != nil {
			t.Fatal(err)
		}
		<-next
		for _, c := range []<-chan http1.Answer{outerNext, innerNext} {
			a := <-c
			const event = `{"eventType":"INVOKE","deadlineMs":1234,"requestId":"r1","invokedFunctionArn":"arn:f","tracing":{"type":"X-Amzn-Trace-Id","value":"Root=1"}}`
			if a.Status != 200 || strings.TrimSpace(string(a.Body)) != event || !isID(field(a, "Lambda-Extension-Event-Identifier")) {
				t.Errorf("%d %s %v", a.Status, a.Body, a.Header)
			}
		}
		b.call("POST", apiRoot+"invocation/r1/response", "{}")
		b.begin("GET", apiRoot+"invocation/next")
		innerNext = b.begin("GET", extensionRoot+"event/next", identifierHeader, inner)
		b.told(t, "begin:r1::false: end::") // outer is not done yet
		if err := b.Invoke(oneInvoke); err == nil {
			t.Error("the one before is not done")
		}
		outerNext = b.begin("GET", extensionRoot+"event/next", identifierHeader, outer)
		b.told(t, "done:r1")

		if got := b.Shutdown("spindown", 5678); !reflect.DeepEqual(got, []string{"outer"}) {
			t.Error(got)
		}
		a := <-outerNext
		if got := strings.TrimSpace(string(a.Body)); got != `{"eventType":"SHUTDOWN","deadlineMs":5678,"shutdownReason":"spindown"}` {
			t.Error(got)
		}
		select {
		case a := <-innerNext:
			t.Error("internal ones are told nothing", a)
		default:
		}
	})
}

// SHUTDOWN waits for the next call of one that is busy.
func TestShutdownWhileBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{External: []string{"e"}})
		id := b.register(t, "e", "SHUTDOWN")
		b.Shutdown("timeout", 1)
		if a := b.call("GET", extensionRoot+"event/next", "", identifierHeader, id); !strings.Contains(string(a.Body), `"timeout"`) {
			t.Errorf("%d %s", a.Status, a.Body)
		}
	})
}

func TestRegisterAnswer(t *testing.T) {
	b := newBench(t, Options{})
	for feature, want := range map[string]string{
		"":                    `{"functionName":"f","functionVersion":"$LATEST","handler":"main"}`,
		"other, accountId , ": `{"accountId":"000000000000","functionName":"f","functionVersion":"$LATEST","handler":"main"}`,
		"accountid":           `{"functionName":"f","functionVersion":"$LATEST","handler":"main"}`,
	} {
		a := b.call("POST", extensionRoot+"register", `{"events":[]}`, "Lambda-Extension-Name", "i"+feature, "Lambda-Extension-Accept-Feature", feature)
		if a.Status != 200 || strings.TrimSpace(string(a.Body)) != want || !isID(field(a, identifierHeader)) {
			t.Errorf("%q: %d %s %v", feature, a.Status, a.Body, a.Header)
		}
	}
}

func TestRegisterRefused(t *testing.T) {
	many := make([]string, 9)
	for i := range many {
		many[i] = fmt.Sprint("e", i)
	}
	for name, c := range map[string]struct {
		who, body  string
		kind, text string
		prepare    func(*testing.T, *bench)
	}{
		"no name":             {"", `{"events":[]}`, "Extension.InvalidExtensionName", "Empty extension name", nil},
		"an unknown event":    {"e0", `{"events":["INVOKE","OTHER"]}`, "Extension.InvalidEventType", "OTHER: ErrorInvalidEventType", nil},
		"a small one":         {"i", `{"events":["invoke"]}`, "Extension.InvalidEventType", "invoke: ErrorInvalidEventType", nil},
		"shutdown, internal":  {"i", `{"events":["SHUTDOWN"]}`, "Extension.InvalidEventType", "SHUTDOWN: ShutdownEventNotSupportedForInternalExtension", nil},
		"keys":                {"i", `{"configurationKeys":["a"]}`, "InvalidRequestFormat", "configurationKeys are deprecated; use environment variables instead", nil},
		"too long":            {"i", `{"events":["` + strings.Repeat("x", maxRegister) + `"]}`, "InvalidRequestFormat", "more than 65536 bytes", nil},
		"no JSON":             {"i", ``, "InvalidRequestFormat", "unexpected end of JSON input", nil},
		"twice, external":     {"e0", `{}`, "Extension.InvalidExtensionState", "State transition from Registered to Registered failed for extension e0. Error: State transition is not allowed", func(t *testing.T, b *bench) { b.register(t, "e0") }},
		"twice, internal":     {"i", `{}`, "Extension.InvalidExtensionState", "Extension with this name already registered", func(t *testing.T, b *bench) { b.register(t, "i") }},
		"closed":              {"i", `{}`, "Extension.RegistrationClosed", "Extension registration closed already", func(_ *testing.T, b *bench) { b.begin("GET", apiRoot+"invocation/next") }},
		"closed by a restore": {"i", `{}`, "Extension.RegistrationClosed", "Extension registration closed already", func(_ *testing.T, b *bench) { b.call("GET", apiRoot+"restore/next", "") }},
		"one too many":        {"i", `{}`, "Extension.TooManyExtensions", "Extension limit (10) reached", func(t *testing.T, b *bench) { b.register(t, "tenth") }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				external := many
				if c.who == "i" && strings.HasPrefix(name, "twice") {
					external = many[:8]
				}
				b := newBench(t, Options{External: external})
				if c.prepare != nil {
					c.prepare(t, b)
				}
				a := b.call("POST", extensionRoot+"register", c.body, "Lambda-Extension-Name", c.who)
				check(t, a, 403, c.kind, c.text)
				b.Close()
			})
		})
	}
}

func TestIdentifierRefused(t *testing.T) {
	b := newBench(t, Options{External: []string{"e"}})
	for _, path := range []string{"event/next", "init/error", "exit/error"} {
		method, unknown := "POST", "Unknown Lambda-Extension-Identifier"
		id := newID()
		if path == "event/next" {
			method, unknown = "GET", "Unknown extension "+id
		}
		ask := func(id string) http1.Answer {
			return b.call(method, extensionRoot+path, "", identifierHeader, id, extensionErrorHeader, "Extension.X")
		}
		check(t, ask(""), 403, "Extension.MissingExtensionIdentifier", "Missing Lambda-Extension-Identifier header")
		check(t, ask("e"), 403, "Extension.InvalidExtensionIdentifier", "Invalid Lambda-Extension-Identifier")
		check(t, ask(id), 403, "Extension.UnknownExtensionIdentifier", unknown)
		if a := ask(b.extensions[0].id); a.Status != 403 || !strings.Contains(string(a.Body), "UnknownExtensionIdentifier") {
			t.Errorf("one that has not registered: %d %s", a.Status, a.Body)
		}
	}
	id := b.register(t, "e")
	for _, path := range []string{"init/error", "exit/error"} {
		check(t, b.call("POST", extensionRoot+path, "", identifierHeader, id), 403, "Extension.MissingHeader", "Lambda-Extension-Function-Error-Type not found")
	}
}

func TestExtensionStates(t *testing.T) {
	const text = "State transition from %s to %s failed for extension %s. Error: State transition is not allowed"
	for at, to := range map[state]map[string]state{
		registeredState: {"event/next": "", "init/error": "", "exit/error": ""},
		ready:           {"event/next": ready, "init/error": initError, "exit/error": ""},
		running:         {"event/next": "", "init/error": initError, "exit/error": ""},
		initError:       {"event/next": ready, "init/error": "", "exit/error": exited},
		exitError:       {"event/next": ready, "init/error": initError, "exit/error": ""},
		exited:          {"event/next": ready, "init/error": initError, "exit/error": exited},
	} {
		for path, named := range to {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, Options{External: []string{"e"}})
				id := b.register(t, "e")
				b.extensions[0].state, b.extensions[0].wait = at, make(chan event, 1)
				method := "POST"
				if path == "event/next" {
					method = "GET"
				}
				c := b.begin(method, extensionRoot+path, identifierHeader, id, extensionErrorHeader, "Extension.X")
				switch {
				case named != "":
					check(t, <-c, 403, "Extension.InvalidExtensionState", fmt.Sprintf(text, at, named, id))
				case method == "POST":
					if a := <-c; a.Status != 202 {
						t.Errorf("%s in %s: %d %s", path, at, a.Status, a.Body)
					}
					kind := map[string]string{"init/error": "Extension.InitError", "exit/error": "Extension.ExitError"}[path]
					b.told(t, "init-failed:"+kind+":")
					if got := b.Exited("e"); got != kind {
						t.Errorf("it exits as %s", got)
					}
				default:
					select {
					case a := <-c:
						t.Errorf("%s in %s: %d %s", path, at, a.Status, a.Body)
					default:
					}
				}
				b.Close()
			})
		}
	}
}

func TestExited(t *testing.T) {
	b := newBench(t, Options{External: []string{"e"}})
	b.register(t, "i")
	for name, want := range map[string]string{"": "Runtime.ExitError", "e": "Extension.Crash", "i": "Extension.Crash", "x": "Extension.Crash"} {
		if got := b.Exited(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if list, _ := json.Marshal(b.Extensions()); !strings.Contains(string(list), `"Exited"`) || !strings.Contains(string(list), `"Registered"`) {
		t.Errorf("%s", list)
	}
}
