package lambdaapi

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// longest is how much of a request's text a message repeats, in bytes: more than any
// name or ARN that is right.
const longest = 2048

// deepest is how deep members that are ignored may nest: far deeper than any real
// request, and shallow enough for the decoder's stack of brackets to stay small.
const deepest = 500

// cut shortens a text that came with a request, for a message.
func cut(s string) string {
	if len(s) > longest {
		return strings.ToValidUTF8(s[:longest], "") + "…"
	}
	return s
}

// Decode reads the input of an operation: vars are Route's, body is the whole
// body, which an input with a payload keeps. Members that the operation does not
// know are ignored, types are not converted, null is "not there". The input obeys
// the model's rules: what its texts, lists, numbers and enumerations may be. The
// error is one for WriteError.
func Decode[In any](r *http.Request, vars Vars, body []byte) (*In, error) {
	in := new(In)
	v := reflect.ValueOf(in).Elem()
	var c checker
	if err := decode(v, r, vars, body, &c); err != nil {
		return nil, err
	}
	c.structure(v, "")
	if err := c.err(); err != nil {
		return nil, err
	}
	return in, nil
}

// decode reads a request into an input's members, and notes which of those that must be
// there are not.
func decode(v reflect.Value, r *http.Request, vars Vars, body []byte, c *checker) error {
	if err := decodeBody(v, body, c); err != nil {
		return err
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return SerializationException.Errorf("The query string is malformed.")
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		where, name, _ := strings.Cut(f.Tag.Get("in"), ":")
		var texts []string
		switch where {
		case "":
			continue // in the body's JSON
		case "path":
			if text, ok := vars[name]; ok {
				texts = []string{text}
			}
		case "query":
			texts = query[name]
		case "header":
			texts = r.Header.Values(name)
		case "body":
			v.Field(i).SetBytes(body)
			continue
		}
		if err := setTexts(v.Field(i), texts); err != nil {
			return err
		}
		if _, required := shapeOf(f); required && len(texts) == 0 {
			c.absent(join("", f.Name))
		}
	}
	return nil
}

// decodeBody reads the body's JSON into the members that stand in it, and notes which
// of those that must be there are not. A shape that has none leaves the body unread.
func decodeBody(v reflect.Value, body []byte, c *checker) error {
	reads := false
	for i := range v.NumField() {
		reads = reads || v.Type().Field(i).Tag.Get("in") == ""
	}
	if !reads {
		return nil
	}
	if len(bytes.TrimSpace(body)) == 0 {
		body = []byte("{}")
	}
	if !utf8.Valid(body) {
		return malformed("Invalid UTF-8")
	}
	d := decoder{json.NewDecoder(bytes.NewReader(body)), c}
	d.UseNumber()
	t, err := d.next()
	if err != nil {
		return err
	}
	if err := d.structure(t, v, ""); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return malformed("there is something after the end")
	}
	return nil
}

func malformed(why string) error {
	return InvalidRequestContentException.Errorf("Could not parse request body into json: %s", cut(why))
}

// setTexts sets a member from the values of a query or header, or from a part of
// the path, if there are any.
func setTexts(v reflect.Value, texts []string) error {
	if len(texts) == 0 {
		return nil
	}
	if v.Kind() == reflect.Slice {
		v.Set(reflect.ValueOf(texts))
		return nil
	}
	v = settle(v)
	switch v.Kind() {
	case reflect.String:
		v.SetString(texts[0])
	case reflect.Int:
		n, err := strconv.ParseInt(texts[0], 10, 64)
		if err != nil {
			return SerializationException.Errorf("STRING_VALUE can not be converted to an Integer")
		}
		v.SetInt(n)
	case reflect.Bool:
		if texts[0] != "true" && texts[0] != "false" {
			return SerializationException.Errorf("STRING_VALUE can not be converted to a Boolean")
		}
		v.SetBool(texts[0] == "true")
	default:
		panic("lambdaapi: no such member outside of a body: " + v.Type().String())
	}
	return nil
}

// settle returns what v points to, after having made it.
func settle(v reflect.Value) reflect.Value {
	if v.Kind() != reflect.Pointer {
		return v
	}
	v.Set(reflect.New(v.Type().Elem()))
	return v.Elem()
}

// A decoder reads JSON token by token: names must match exactly, unlike with package json.
type decoder struct {
	*json.Decoder
	c *checker // is told of members that must be there and are not
}

func (d *decoder) next() (json.Token, error) {
	t, err := d.Token()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, malformed(err.Error())
	}
	return t, nil
}

// value reads what begins with token t into v, which has the given shape.
func (d *decoder) value(t json.Token, v reflect.Value, path, shape string) error {
	v = settle(v)
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[Time]() {
			return setTime(t, v)
		}
		return d.structure(t, v, path)
	case reflect.Map:
		return d.mapping(t, v, path, rules[shape].value)
	case reflect.Slice:
		if v.Type() == reflect.TypeFor[[]byte]() {
			return setBlob(t, v)
		}
		return d.list(t, v, path, rules[shape].member)
	}
	return setScalar(t, v, rules[shape].long)
}

func (d *decoder) structure(t json.Token, v reflect.Value, path string) error {
	if t != json.Delim('{') {
		return SerializationException.Errorf("Unexpected value type: a structure was expected, not %s", valueName(t))
	}
	fields, seen := map[string]int{}, map[int]bool{}
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		if name, _, _ := strings.Cut(tag.Get("json"), ","); name != "-" {
			fields[name] = i
		}
	}
	for d.More() {
		name, value, err := d.pair()
		if err != nil {
			return err
		}
		i, known := fields[name]
		if known {
			v.Field(i).SetZero() // of two members of a name the last counts
			seen[i] = value != nil
		}
		if known && value != nil {
			f := v.Type().Field(i)
			shape, _ := shapeOf(f)
			err = d.value(value, v.Field(i), join(path, f.Name), shape)
		} else {
			err = d.skip(value)
		}
		if err != nil {
			return err
		}
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if _, required := shapeOf(f); required && f.Tag.Get("in") == "" && !seen[i] {
			d.c.absent(join(path, f.Name))
		}
	}
	_, err := d.next()
	return err
}

// pair reads a member's name and its value's first token.
func (d *decoder) pair() (string, json.Token, error) {
	name, err := d.next()
	if err != nil {
		return "", nil, err
	}
	value, err := d.next()
	return name.(string), value, err
}

func (d *decoder) mapping(t json.Token, v reflect.Value, path, shape string) error {
	if t != json.Delim('{') {
		return SerializationException.Errorf("Expected map or null")
	}
	v.Set(reflect.MakeMap(v.Type()))
	for d.More() {
		name, value, err := d.pair()
		if err != nil {
			return err
		}
		element := reflect.New(v.Type().Elem()).Elem()
		if value == nil {
			return SerializationException.Errorf("Map value must not be null")
		}
		if err := d.value(value, element, path+"."+cut(name)+".member", shape); err != nil {
			return err
		}
		v.SetMapIndex(reflect.ValueOf(name), element)
	}
	_, err := d.next()
	return err
}

func (d *decoder) list(t json.Token, v reflect.Value, path, shape string) error {
	if t != json.Delim('[') {
		return SerializationException.Errorf("Expected list or null")
	}
	v.Set(reflect.MakeSlice(v.Type(), 0, 0))
	for d.More() {
		t, err := d.next()
		if err != nil {
			return err
		}
		if t == nil {
			return SerializationException.Errorf("List member must not be null")
		}
		element := reflect.New(v.Type().Elem()).Elem()
		if err := d.value(t, element, path+"."+strconv.Itoa(v.Len()+1)+".member", shape); err != nil {
			return err
		}
		v.Set(reflect.Append(v, element))
	}
	_, err := d.next()
	return err
}

// skip reads past a value that nobody asked for.
func (d *decoder) skip(t json.Token) error {
	for depth := 0; ; {
		switch t {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
		if depth > deepest {
			return malformed("nested too deeply")
		}
		var err error
		if t, err = d.next(); err != nil {
			return err
		}
	}
}

func setScalar(t json.Token, v reflect.Value, long bool) error {
	number, isNumber := t.(json.Number)
	switch v.Kind() {
	case reflect.String:
		if s, ok := t.(string); ok {
			v.SetString(s)
			return nil
		}
		return unconvertible(t, "a String")
	case reflect.Bool:
		if b, ok := t.(bool); ok {
			v.SetBool(b)
			return nil
		}
		return unconvertible(t, "a Boolean")
	case reflect.Float64:
		if f, err := number.Float64(); isNumber && err == nil {
			v.SetFloat(f)
			return nil
		}
		return unconvertible(t, "a Double")
	case reflect.Int:
		if n, err := number.Int64(); isNumber && err == nil && (long || n >= math.MinInt32 && n <= math.MaxInt32) {
			v.SetInt(n)
			return nil
		}
		if long {
			return unconvertible(t, "a Long")
		}
		return unconvertible(t, "an Integer")
	}
	panic("lambdaapi: no such member in a body: " + v.Type().String())
}

func setBlob(t json.Token, v reflect.Value) error {
	s, ok := t.(string)
	if !ok {
		return unconvertible(t, "a Blob")
	}
	data, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return SerializationException.Errorf("A blob is not in base64")
	}
	v.SetBytes(data)
	return nil
}

func setTime(t json.Token, v reflect.Value) error {
	if number, ok := t.(json.Number); ok {
		if at, err := parseTime(number.String()); err == nil {
			v.Set(reflect.ValueOf(at))
			return nil
		}
	}
	return unconvertible(t, "a Timestamp")
}

func unconvertible(t json.Token, into string) error {
	switch t {
	case json.Delim('{'), json.Delim('['):
		return SerializationException.Errorf("Start of structure or map found where not expected.")
	}
	return SerializationException.Errorf("%s can not be converted to %s", valueName(t), into)
}

// valueName calls a token as AWS does.
func valueName(t json.Token) string {
	switch t := t.(type) {
	case string:
		return "STRING_VALUE"
	case json.Number:
		return "NUMBER_VALUE"
	case bool:
		return strings.ToUpper(strconv.FormatBool(t)) + "_VALUE"
	case nil:
		return "NULL_VALUE"
	}
	return fmt.Sprintf("%v", t)
}
