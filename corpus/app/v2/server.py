"""Serves the statistics of a series of readings."""

import os

from flask import Flask, jsonify, render_template, request

import readings
import stats

app = Flask(__name__)


@app.get("/")
def index():
    return render_template("index.html", series=readings.names())


@app.get("/summary/<name>")
def summary(name):
    return jsonify(stats.summary(readings.load(name)))


@app.post("/summary")
def posted():
    return jsonify(stats.summary(readings.parse(request.get_json())))


if __name__ == "__main__":
    app.run(host="0.0.0.0", port=int(os.environ.get("PORT", "8080")))
