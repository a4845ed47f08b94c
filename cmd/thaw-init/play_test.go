package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

// play is what the test binary does inside of an instance.
func play(role string) {
	switch role {
	case "function":
		fmt.Println("starting")
		lambda.Start(function)
	case "sigterm": // with Lambda's own internal extension
		lambda.StartWithOptions(function, lambda.WithEnableSIGTERM(func() { fmt.Println("got SIGTERM") }))
	case "leaves": // when it is asked to
		lambda.StartWithOptions(function, lambda.WithEnableSIGTERM(func() { fmt.Println("got SIGTERM"); os.Exit(0) }))
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		lambda.StartWithOptions(function, lambda.WithEnableSIGTERM(func() {}))
	case "exit":
		fmt.Print("last words")
		os.Exit(3)
	case "init-error":
		post("/2018-06-01/runtime/init/error", `{"errorMessage":"cannot"}`, "Lambda-Runtime-Function-Error-Type", "Runtime.HandlerNotFound")
		os.Exit(1)
	case "extension":
		extension()
	case "sleep":
		signal.Ignore(syscall.SIGTERM)
		hang()
	}
	os.Exit(99)
}

// hang does so where Go sees a deadlock too: without cgo.
func hang() {
	for {
		_ = syscall.Pause()
	}
}

// post calls the API and gives the answer.
func post(path, body string, fields ...string) *http.Response {
	req, _ := http.NewRequest("POST", "http://"+os.Getenv("AWS_LAMBDA_RUNTIME_API")+path, strings.NewReader(body))
	if body == "" {
		req.Method = "GET"
	}
	for i := 0; i < len(fields); i += 2 {
		req.Header.Set(fields[i], fields[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		fmt.Println("calling the API:", err)
		os.Exit(98)
	}
	return resp
}

// extension is an external one; its name says what it does.
func extension() {
	name := os.Args[0][strings.LastIndexByte(os.Args[0], '/')+1:]
	if name == "crashes" {
		os.Exit(7)
	}
	events := `{"events":["INVOKE","SHUTDOWN"]}`
	if name == "quiet" {
		events = `{"events":[]}`
	}
	resp := post("/2020-01-01/extension/register", events, "Lambda-Extension-Name", name)
	about, _ := io.ReadAll(resp.Body)
	fmt.Printf("registered %d %s\n", resp.StatusCode, strings.TrimSpace(string(about)))
	id := resp.Header.Get("Lambda-Extension-Identifier")
	if name == "gives-up" {
		post("/2020-01-01/extension/init/error", "{}", "Lambda-Extension-Identifier", id, "Lambda-Extension-Function-Error-Type", "Extension.Mine")
		os.Exit(1)
	}
	for {
		event, _ := io.ReadAll(post("/2020-01-01/extension/event/next", "", "Lambda-Extension-Identifier", id).Body)
		fmt.Printf("event %s\n", strings.TrimSpace(string(event)))
		if strings.Contains(string(event), "SHUTDOWN") {
			if name == "stays" {
				hang()
			}
			os.Exit(0)
		}
	}
}

// order is what a test asks the function for.
type order struct {
	Do   string
	Text string
	N    int
}

func function(ctx context.Context, o order) (any, error) {
	switch o.Do {
	case "cut":
		about, _ := lambdacontext.FromContext(ctx)
		if err := sendPart(about.AwsRequestID, o.N); err != nil {
			return nil, err
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		hang()
	case "print":
		fmt.Println(o.Text)
		fmt.Fprint(os.Stderr, o.Text, " without end")
	case "bytes":
		return strings.Repeat("x", o.N-2), nil
	case "fail":
		return nil, errors.New(o.Text)
	case "exit":
		os.Exit(o.N)
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.Signal(o.N))
		hang()
	case "hang":
		fmt.Println("hanging")
		hang()
	case "flood":
		line := []byte(strings.Repeat("y", 120) + "\n")
		for range o.N / len(line) {
			_, _ = os.Stdout.Write(line)
		}
	case "orphans":
		for range o.N {
			if err := exec.Command("/bin/sh", "-c", "/bin/sleep 0.01 & exec /bin/true").Run(); err != nil {
				return nil, err
			}
		}
	case "daemon":
		cmd := exec.Command("/bin/sh", "-c", "trap '' TERM; /usr/bin/setsid /bin/sleep 1000 & exec /bin/true")
		cmd.Stdout = os.Stdout
		return nil, cmd.Run()
	case "bomb":
		for { // of children that do the same
			_ = exec.Command("/bin/sh", "-c", "while :; do /bin/sleep 1000 & done").Start()
			<-time.After(time.Millisecond)
		}
	case "look":
		return look(), nil
	}
	return o.Text, nil
}

// cutAnswer is a function's answer as it is posted.
func cutAnswer(id string) string {
	return "POST /2018-06-01/runtime/invocation/" + id + "/response HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n{\"n\":1}\r\n0\r\n\r\n"
}

// sendPart posts an answer but for its last bytes.
func sendPart(id string, but int) error {
	conn, err := net.Dial("tcp", os.Getenv("AWS_LAMBDA_RUNTIME_API"))
	if err == nil {
		text := cutAnswer(id)
		_, err = io.WriteString(conn, text[:len(text)-but])
	}
	return err
}

// look says what the function can see and do.
func look() map[string]string {
	found := map[string]string{"env": strings.Join(os.Environ(), " "), "args": strings.Join(os.Args[1:], " ")}
	status, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(status), "\n") {
		name, value, _ := strings.Cut(line, ":")
		found[name] = strings.Join(strings.Fields(value), " ")
	}
	var files syscall.Rlimit
	_ = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files)
	found["files"] = fmt.Sprint(files.Max)
	found["dir"], _ = os.Getwd()
	open, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range open {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && !strings.HasPrefix(to, "anon_inode") && !strings.HasPrefix(to, "socket") {
			found["fd"+fd.Name()] = to
		}
	}
	_, err := os.ReadFile("/proc/1/environ")
	found["environ of init"] = fmt.Sprint(err)
	_, err = os.ReadDir("/proc/1/fd")
	found["descriptors of init"] = fmt.Sprint(err)
	_, err = os.ReadFile("/proc/1/mem")
	found["memory of init"] = fmt.Sprint(err)
	found["killing init"] = fmt.Sprint(syscall.Kill(1, syscall.SIGTERM))
	found["tracing init"] = fmt.Sprint(syscall.PtraceAttach(1))
	score, _ := os.ReadFile("/proc/self/oom_score_adj")
	found["oom"] = strings.TrimSpace(string(score))
	stdout, err := os.OpenFile("/dev/stdout", os.O_WRONLY, 0)
	if err == nil {
		_, err = io.WriteString(stdout, "to /dev/stdout\n")
	}
	found["stdout"] = fmt.Sprint(err)
	return found
}
