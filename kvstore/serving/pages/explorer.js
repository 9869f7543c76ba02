document.getElementById("main").textContent = "kvstore";
