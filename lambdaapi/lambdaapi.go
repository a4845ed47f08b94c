// Package lambdaapi is the wire of the Lambda API: which operation a request
// asks for, what its members are, and how answers and errors are written.
// Shapes, rules, routes and errors are generated from AWS's model of the
// service; package gen of this folder writes them.
//
//	op, vars, err := lambdaapi.Route(r)
//	in, err := lambdaapi.Decode[lambdaapi.CreateFunctionRequest](r, vars, body)
//	err = lambdaapi.Write(w, requestID, op, &lambdaapi.FunctionConfiguration{…})
//	lambdaapi.WriteError(w, requestID, lambdaapi.ResourceNotFoundException.Errorf("Function not found: %s", arn))
//
// # Shapes
//
// A member that must be there is a plain value; others are pointers, or nil
// lists and maps: nil is "not there". An empty list is written as such. A struct's
// tags say where its members stand: in the path, the query, a header, the status,
// as the whole body, or else by their names in the body's JSON.
//
// Time stands for seconds since 1970 on the wire; members that the model
// calls strings, LastModified of functions among them, take FormatTime's text.
package lambdaapi

//go:generate go run ./gen

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Op is an operation's name: "CreateFunction".
type Op string

// Vars are the parts of a request's path that its operation names, decoded.
type Vars map[string]string

// Time is written as seconds since 1970, with up to three decimals.
type Time struct{ time.Time }

// MarshalJSON writes the number.
func (t Time) MarshalJSON() ([]byte, error) {
	text := strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', -1, 64)
	return []byte(text), nil
}

// FormatTime gives the text of a time as members like LastModified of a
// function have it: 2026-11-21T19:48:31.000+0000.
func FormatTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000-0700") }

// parseTime reads the number; a thousand years either way are enough.
func parseTime(text string) (Time, error) {
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil || seconds < -3e10 || seconds > 3e11 || strings.ContainsAny(text, "xXpPnN_") {
		return Time{}, fmt.Errorf("not a time in seconds since 1970")
	}
	return Time{time.UnixMilli(int64(seconds * 1000)).UTC()}, nil
}
