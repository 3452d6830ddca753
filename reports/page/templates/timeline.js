  function startTimeline() {}
